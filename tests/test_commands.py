"""The commands `cancel` and `keys`: output and exit codes, with a fake of the client."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import click
import pytest
from click import ClickException
from click.testing import CliRunner, Result
from evershell.workspace.v1 import task_pb2, workspace_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.cli.main import COMMANDS, main
from evershell.server import client
from evershell.server.cli.duration import DURATION
from evershell.server.cli.endpoint import Identity, find_endpoint
from evershell.server.cli.environment import read_settings
from evershell.server.client import WorkspaceClient, WorkspaceServiceError
from evershell.server.stack.ready import Demo, Ready

Reply = workspace_service_pb2.CancelTaskResponse
Task = task_pb2.Task
AT = Timestamp(seconds=1_700_000_000)
READY = Ready(
    rest_url="http://127.0.0.1:8080",
    grpc_addr="127.0.0.1:8081",
    server_addr="127.0.0.1:50051",
    database_url="postgresql:///evershell",
    demo=Demo(org_id="org_demo", workspace_id="ws_demo", tokens={"full_access": "sk_demo"}),
)


class FakeClient:
    """A client that gives one answer to cancel_task, and records its arguments."""

    def __init__(self, answer: Reply | WorkspaceServiceError) -> None:
        self._answer = answer
        self.arguments: tuple[Any, ...] = ()

    def __call__(self, address: str, token: str, *, credentials: object) -> WorkspaceClient:
        self.arguments = (address, token)
        return cast("WorkspaceClient", self)

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def cancel_task(self, *arguments: Any) -> Reply:
        self.arguments += arguments
        if isinstance(self._answer, WorkspaceServiceError):
            raise self._answer
        return self._answer


def cancel(
    monkeypatch: pytest.MonkeyPatch, answer: Reply | WorkspaceServiceError, *arguments: str
) -> tuple[Result, FakeClient]:
    fake = FakeClient(answer)
    monkeypatch.setattr(client, "WorkspaceClient", fake)
    environment = {"TOKEN": "sk_secret", "GRPC_ADDR": "127.0.0.1:8081"}
    result = CliRunner().invoke(main, ["cancel", "ws_1", *arguments], env=environment)
    assert "sk_secret" not in result.output
    return result, fake


def reply(
    outcome: "Reply.Outcome.ValueType", status: "Task.Status.ValueType", **task: Any
) -> Reply:
    return Reply(
        workspace_id="ws_1",
        task_id="task_1",
        outcome=outcome,
        requested_at=AT,
        requested_by="key_1",
        reason="it\x1b[2J has gone wrong",
        task=Task(id="task_1", status=status, **task),
    )


def test_an_accepted_cancellation_prints_requester_time_reason_and_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = reply(Reply.accepted, Task.running, iterations=1, phase=Task.tool_call)
    result, fake = cancel(
        monkeypatch, answer, "--task", "task_1", "--reason", "why", "--wait", "500ms"
    )
    assert fake.arguments == ("127.0.0.1:8081", "sk_secret", "ws_1", "task_1", "why", 0.5, None)
    # The wait timed out before the end of the task.
    assert result.exit_code == 7
    assert result.stdout.splitlines() == [
        "accepted: the cancellation of task task_1 in workspace ws_1 is recorded.",
        "  requested  2023-11-14T22:13:20Z by key_1",
        r"  reason     it\x1b[2J has gone wrong",
        "  task       running, 1 iteration completed, now in a tool call",
        "  waited     0.5 s; the task has not ended yet.",
        "  next       The agent finishes its current iteration and starts no other;"
        " the task then ends cancelled.",
        '  follow     grpcurl -plaintext -H "authorization: Bearer $TOKEN" '
        """-d '{"workspace_id": "ws_1", "task_id": "task_1"}' 127.0.0.1:8081 """
        "evershell.workspace.v1.WorkspaceService/GetTask",
    ]


@pytest.mark.parametrize(
    ("answer", "arguments", "exit_code", "expected"),
    [
        (reply(Reply.accepted, Task.running), [], 0, "the task then ends cancelled"),
        (reply(Reply.already_requested, Task.running), [], 0, "had been recorded before"),
        (reply(Reply.accepted, Task.cancelled), ["--wait", "10"], 0, "takes its next task"),
        (reply(Reply.already_requested, Task.running), ["--wait", "1s"], 7, "has not ended yet"),
        (
            reply(Reply.already_finished, Task.cancelled, completed_at=AT),
            [],
            3,
            "had ended cancelled at 2023-11-14T22:13:20Z",
        ),
        (
            reply(Reply.already_finished, Task.failed, reason="no luck"),
            ["--wait", "1s"],
            3,
            "no luck",
        ),
        (
            Reply(workspace_id="ws_1", outcome=Reply.no_active_task),
            [],
            3,
            "nothing runs in workspace ws_1",
        ),
    ],
)
def test_each_outcome_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    answer: Reply,
    arguments: list[str],
    exit_code: int,
    expected: str,
) -> None:
    result, _ = cancel(monkeypatch, answer, *arguments)
    assert result.exit_code == exit_code
    assert expected in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("slug", "exit_code"),
    [
        ("validation_error", 5),
        ("unauthenticated", 5),
        ("permission_denied", 5),
        ("workspace_not_found", 5),
        ("task_not_found", 5),
        ("workspace_stopped", 5),
        ("workspace_failed", 5),
        ("workspace_provisioning", 5),
        ("rate_limited", 6),
        ("unavailable", 6),
        ("deadline_exceeded", 6),
        ("agent_unreachable", 4),
        ("internal", 1),
    ],
)
def test_each_failure_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, slug: str, exit_code: int
) -> None:
    result, _ = cancel(
        monkeypatch,
        WorkspaceServiceError(slug, "What happened.", "request_1", {"task_id": "task_1"}),
    )
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith(f"{slug}: What happened.\n  request    request_1\n")
    assert ("GetTask" in result.stderr) == (slug == "agent_unreachable")
    assert ("safe to repeat" in result.stderr) == (slug in ("unavailable", "deadline_exceeded"))


def test_a_rate_limited_call_prints_when_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    error = WorkspaceServiceError(
        "rate_limited", "Too many.", "request_1", {"retry_after_seconds": 1.0}
    )
    result, _ = cancel(monkeypatch, error)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        6,
        "  recorded?  No. Call again after 1 s.",
    )


def test_json_output_is_the_body_of_the_rest_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = cancel(monkeypatch, reply(Reply.accepted, Task.running), "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["outcome"], printed["task"]["status"]) == (
        0,
        "accepted",
        "running",
    )
    assert (printed["requested_at"], printed["task"]["iterations"]) == ("2023-11-14T22:13:20Z", 0)
    details = {"fields": {"reason": "too long"}}
    result, _ = cancel(
        monkeypatch,
        WorkspaceServiceError("validation_error", "No.", "request_1", details),
        "--json",
    )
    assert result.exit_code == 5
    assert json.loads(result.stdout) == {
        "error": {
            "code": "validation_error",
            "message": "No.",
            "request_id": "request_1",
            "details": details,
        }
    }


CONTROL_CHARACTERS = "\x1b[2J\x9b2J\x7f\u202e\r\n"


def test_control_characters_of_an_answer_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = Task(id=CONTROL_CHARACTERS, status=Task.running)
    answer = Reply(
        workspace_id=CONTROL_CHARACTERS,
        task_id=CONTROL_CHARACTERS,
        outcome=Reply.accepted,
        requested_by=CONTROL_CHARACTERS,
        reason=CONTROL_CHARACTERS,
        task=nasty,
    )
    finished = Reply(
        task_id=CONTROL_CHARACTERS,
        outcome=Reply.already_finished,
        task=Task(status=Task.failed, reason=CONTROL_CHARACTERS),
    )
    error = WorkspaceServiceError(
        CONTROL_CHARACTERS, CONTROL_CHARACTERS, CONTROL_CHARACTERS, {"task_id": CONTROL_CHARACTERS}
    )
    lost = WorkspaceServiceError(
        "agent_unreachable", CONTROL_CHARACTERS, CONTROL_CHARACTERS, {"task_id": CONTROL_CHARACTERS}
    )
    for each in (
        answer,
        finished,
        Reply(workspace_id=CONTROL_CHARACTERS, outcome=Reply.no_active_task),
        error,
        lost,
    ):
        for arguments in ((), ("--json",)):
            result, _ = cancel(monkeypatch, each, *arguments)
            printed = result.output.replace("\n", "")
            assert printed.isprintable(), ascii(printed)
            assert r"\x1b[2J" in printed or r"\u001b[2J" in printed


def test_json_output_is_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _ = cancel(
        monkeypatch,
        Reply(outcome=Reply.accepted, reason=CONTROL_CHARACTERS, task=Task(status=Task.running)),
        "--json",
    )
    assert result.stdout.isascii()
    assert json.loads(result.stdout)["reason"] == CONTROL_CHARACTERS


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2.5", 2.5), ("500ms", 0.5), ("10s", 10), ("1m", 60)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 s", "nan", "1e3"])
def test_an_invalid_duration_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    result, fake = cancel(monkeypatch, Reply(), "--wait", text)
    assert (result.exit_code, fake.arguments) == (2, ())
    assert "write 500ms, 10s, 1m, 1h or 30d" in result.stderr


def test_the_demo_credential_is_sent_only_to_its_own_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    READY.write(tmp_path)
    found = find_endpoint("", "", None)
    assert (found.address, found.token) == ("127.0.0.1:8081", "sk_demo")
    given = find_endpoint("", "sk_mine", io.StringIO("sk_file\n"))
    assert (given.address, given.token) == ("127.0.0.1:8081", "sk_file")
    assert find_endpoint("127.0.0.1:8081", "", None).token == "sk_demo"
    result = CliRunner().invoke(
        main, ["cancel", "ws_1", "--address", "elsewhere:443"], env={"TOKEN": "", "GRPC_ADDR": ""}
    )
    assert (result.exit_code, "no credential" in result.stderr) == (1, True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"demo": {"tokens": "sk_secret"}}'])
def test_an_invalid_ready_json_is_refused_in_one_line_without_its_secrets(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "ready.json").write_text(content)
    environment = {"STATE_DIR": str(tmp_path), "TOKEN": "", "GRPC_ADDR": ""}
    result = CliRunner().invoke(main, ["cancel", "ws_1"], env=environment)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'ready.json'} cannot be read: ")
    assert result.stderr.count("\n") == 1
    assert "sk_secret" not in result.stderr


def test_the_list_of_commands_imports_none_of_them() -> None:
    program = (
        "import sys; from evershell.cli.main import main; "
        "main(['--help'], standalone_mode=False); "
        "sys.exit('grpc' in sys.modules)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    for name in COMMANDS:
        assert f"  {name} " in listed.stdout


def test_a_stack_with_tls_is_called_over_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    READY.model_copy(update={"tls_cert_file": "/etc/edge.pem"}).write(tmp_path)
    mine = Identity(cert_file=Path("me.pem"), key_file=Path("me.key"))
    found = find_endpoint("127.0.0.1:8081", "sk_mine", None, mine)
    assert (found.address, found.identity.grpcurl_options()) == (
        "https://127.0.0.1:8081",
        "-cacert /etc/edge.pem -cert me.pem -key me.key ",
    )
    elsewhere = find_endpoint("https://elsewhere:443", "sk_mine", None)
    assert (elsewhere.address, elsewhere.identity) == ("https://elsewhere:443", Identity())


def test_a_call_with_address_and_credential_ignores_the_local_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    (tmp_path / "ready.json").write_text("{")
    assert find_endpoint("elsewhere:443", "sk_mine", None).address == "elsewhere:443"
    with pytest.raises(ClickException, match="cannot be read"):
        find_endpoint("elsewhere:443", "", None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cert_file": Path("me.pem")}, "must be given together"),
        ({"ca_file": Path("/nowhere/ca.pem")}, "/nowhere/ca.pem cannot be read: No such"),
    ],
)
def test_an_unusable_certificate_file_is_refused(files: dict[str, Path], expected: str) -> None:
    with pytest.raises(ClickException, match=expected):
        Identity(**files).credentials()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"TLS_CERT_FILE": "edge.pem"},
            "TLS_KEY_FILE: Value error, TLS_CERT_FILE and TLS_KEY_FILE must be set together",
        ),
        ({"TLS_KEY_FILE": "edge.key"}, "must be set together"),
        ({"TLS_CLIENT_CA_FILE": "ca.pem"}, "TLS_CLIENT_CA_FILE: Value error, needs TLS_CERT_FILE"),
    ],
)
def test_incomplete_tls_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClickException, match=expected):
        read_settings()


@pytest.mark.parametrize("command", [["cancel", "ws_1"], ["keys", "list", "--org", "org_1"]])
def test_a_command_without_a_stack_says_how_to_start_one(
    tmp_path: Path, command: list[str]
) -> None:
    environment = {"STATE_DIR": str(tmp_path), "TOKEN": "", "GRPC_ADDR": "", "DATABASE_URL": ""}
    result = CliRunner().invoke(main, command, env=environment)
    assert result.exit_code == 1
    assert f"no stack runs in {tmp_path}. Start one with `make run`" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [(None, "There is no credential."), ("binary", "holds no token: it is not a text.")],
)
def test_standard_input_without_a_token_is_said_in_a_line(
    tmp_path: Path, stdin: str | None, expected: str
) -> None:
    """None: standard input is closed."""
    (tmp_path / "binary").write_bytes(b"sk_\xff\n")
    redirection = "<&-" if stdin is None else f"< {tmp_path / stdin}"
    command = f"{sys.executable} -m evershell.server cancel ws_1 --address x --token-file -"
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {command} {redirection}"],
        env={**os.environ, "STATE_DIR": str(tmp_path), "TOKEN": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert expected in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_code_tells_the_outcome_if_it_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    echo = click.echo

    def full(text: str, file: object = None, *, err: bool = False, **more: Any) -> None:
        if not err:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        echo(text, err=True)

    monkeypatch.setattr(click, "echo", full)
    monkeypatch.setattr(
        click.ClickException, "show", lambda self: echo(self.format_message(), err=True)
    )
    idle = Reply(workspace_id="ws_1", outcome=Reply.no_active_task)
    result, _ = cancel(monkeypatch, idle, *options)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "Standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--org", "org 1", "--template", "full_access"], "--org: must be"),
        (
            ["--org", "org_1", "--template", "everything"],
            "is not one of 'full_access', 'submit_observe', 'read_only'",
        ),
        (["--org", "org_1", "--template", "read_only", "--name", "x" * 201], "at most 200"),
        (
            ["--org", "org_1", "--template", "read_only", "--create-org", "-Acme"],
            "--create-org: must be",
        ),
        (["--org", "new", "--template", "read_only"], "--create-org: is required with --org new"),
        (
            ["--org", "org_1", "--template", "read_only", "--expires-in", "0s"],
            "--expires-in: must be more than 0 s",
        ),
        (
            ["--org", "org_1", "--template", "read_only", "--expires-in", "soon"],
            "is not a duration",
        ),
    ],
)
def test_a_key_with_invalid_options_is_refused(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(main, ["keys", "create", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_an_invalid_database_url_is_not_printed(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main,
        ["keys", "list", "--org", "org_1"],
        env={"DATABASE_URL": "postgress://me:secret@host/db"},
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert "DATABASE_URL is not a valid URL" in result.stderr
    assert "secret" not in result.stderr


def test_a_duration_that_no_message_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = cancel(monkeypatch, Reply(), "--wait", "9" * 30 + "s")
    assert (result.exit_code, "is too long" in result.stderr) == (2, True)
