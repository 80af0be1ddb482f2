"""Which service a command calls, and with which credential."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from click import ClickException
from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner

from evershell.cli import login as login_module
from evershell.cli import profiles, service
from evershell.cli.duration import DURATION
from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.main import COMMANDS, main
from evershell.cli.profiles import Profile
from evershell.cli.service import find_target
from evershell.client import (
    PermissionDeniedError,
    Task,
    TaskStatus,
    UnauthenticatedError,
    UnavailableError,
    Workspace,
    WorkspaceStatus,
)
from evershell.client.pages import Page
from evershell.server.stack.ready import Demo, Ready
from tests.support.fake_client import FakeClient

READY = Ready(
    rest_url="http://127.0.0.1:8080",
    grpc_addr="127.0.0.1:8081",
    server_addr="127.0.0.1:50051",
    database_url="postgresql:///evershell",
    demo=Demo(org_id="org_demo", workspace_id="ws_demo", tokens={"full_access": "sk_demo"}),
)
HOME = "https://acme.evershell.ai"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment that names no service, and a folder for the profiles and the stack."""
    for name in ("EVERSHELL_URL", "EVERSHELL_API_KEY", "EVERSHELL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EVERSHELL_CONFIG", str(tmp_path / "config" / "profiles.json"))
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    return tmp_path


def find(url: str = "", profile: str = "", token: str | None = None) -> tuple[str, str]:
    file = None if token is None else io.StringIO(token)
    found = find_target(url, profile, file, {})
    return found.url, found.credential


def test_the_demo_credential_is_sent_only_to_its_own_stack(tmp_path: Path) -> None:
    READY.write(tmp_path)
    assert find() == ("http://127.0.0.1:8081", "sk_demo")
    assert find(token="sk_file\n") == ("http://127.0.0.1:8081", "sk_file")
    for url in ("127.0.0.1:8081", "http://127.0.0.1:8081/"):
        assert find(url) == ("http://127.0.0.1:8081", "sk_demo")
    for url in ("elsewhere:443", "https://127.0.0.1:8081", "http://127.0.0.1:80810"):
        with pytest.raises(ClickException, match="There is no credential for"):
            find(url)


def test_the_credential_of_a_profile_is_sent_only_to_its_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    READY.write(tmp_path)
    profiles.add("default", Profile(HOME, "sk_home"))
    profiles.add("other", Profile("https://b", "sk_b"))
    assert find() == (HOME, "sk_home")
    assert find("acme.evershell.ai") == (HOME, "sk_home")
    assert find(profile="other") == ("https://b", "sk_b")
    assert find("http://127.0.0.1:8081") == ("http://127.0.0.1:8081", "sk_demo")
    for url in (f"{HOME}:443/", "HTTPS://ACME.evershell.ai", "acme.evershell.ai:443"):
        assert find(url) == (HOME, "sk_home")
    profiles.add("default", Profile("127.0.0.1:9", "sk_home"))
    assert find("http://127.0.0.1:9") == ("127.0.0.1:9", "sk_home")
    for url in ("https://b", "https://127.0.0.1:9", "http://acme.evershell.ai", "https://a b"):
        with pytest.raises(ClickException, match="There is no credential for"):
            find(url)
    with pytest.raises(ClickException, match=r"no profile third\. Run `evershell login"):
        find(profile="third")
    monkeypatch.setenv("EVERSHELL_URL", "https://c")
    monkeypatch.setenv("EVERSHELL_API_KEY", "sk_c")
    assert find() == ("https://c", "sk_c")
    # A profile that is named wins over the environment, except for its credential.
    assert find(profile="other") == ("https://b", "sk_c")


def test_a_stack_with_tls_is_called_over_tls(tmp_path: Path) -> None:
    READY.model_copy(update={"tls_cert_file": "/etc/edge.pem"}).write(tmp_path)
    found = find_target("127.0.0.1:8081", "", None, {"cert_file": "me.pem"})
    assert (found.url, found.files) == (
        "https://127.0.0.1:8081",
        {"ca_file": "/etc/edge.pem", "cert_file": "me.pem"},
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"demo": {"tokens": "sk_secret"}}',
        '{"profiles": {"default": {"url": 5, "credential": "sk_secret"}}}',
        '{"profiles": {"default": {"url": "https://a", "credential": 5}}}',
        '{"profiles": {"default": {"url": "https://a", "credential": "sk_secret", "ca_file": 5}}}',
    ],
)
def test_files_that_are_not_valid_are_refused_in_one_line_without_their_secrets(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "ready.json").write_text(content)
    result = CliRunner().invoke(main, ["cancel", "ws_1"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: {tmp_path / 'ready.json'} cannot be read: ")
    profiles.path().parent.mkdir()
    profiles.path().write_text(content)
    profiles.path().chmod(0o600)
    refused = CliRunner().invoke(main, ["cancel", "ws_1"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"{profiles.path()} is not valid" in refused.stderr
    assert "sk_secret" not in result.stderr + refused.stderr
    # They do not matter for a call that needs neither.
    assert find("https://elsewhere", token="sk_mine") == ("https://elsewhere", "sk_mine")


def test_a_file_of_profiles_that_others_can_read_is_refused() -> None:
    profiles.add("default", Profile(HOME, "sk_home"))
    assert profiles.path().stat().st_mode & 0o777 == 0o600
    assert profiles.path().parent.stat().st_mode & 0o777 == 0o700
    profiles.path().chmod(0o640)
    with pytest.raises(ClickException, match="Others can read the credentials"):
        find()
    assert "sk_home" not in repr(Profile(HOME, "sk_home")) + repr(
        find_target("x", "", io.StringIO("sk_home"), {})
    )


def test_without_a_service_a_command_says_how_to_name_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["cancel", "ws_1"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"no stack runs in {tmp_path}. Start one with `make run`" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cert-file", "me.pem"], "must be given together"),
        (["--ca-file", "/nowhere/ca.pem"], "/nowhere/ca.pem cannot be read: No such"),
        (["--url", "ftp://host"], "is not a valid address"),
    ],
)
def test_options_that_are_not_valid_are_said_in_a_line(options: list[str], message: str) -> None:
    environment = {"EVERSHELL_API_KEY": "sk_secret", "EVERSHELL_URL": HOME}
    result = CliRunner().invoke(main, ["workspaces", *options], env=environment)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr and "sk_secret" not in result.stderr


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
    command = f"{sys.executable} -m evershell.server cancel ws_1 --url x --token-file -"
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {command} {redirection}"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert expected in done.stderr


def log_in(
    monkeypatch: pytest.MonkeyPatch, answer: Page[Workspace] | Exception, *options: str, typed: str
) -> tuple[int, str]:
    class Pages:
        def pages(self) -> "Pages":
            return self

        def __next__(self) -> Page[Workspace]:
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(service, "Client", FakeClient(list_workspaces=[Pages()]))
    result = CliRunner().invoke(main, ["login", *options], input=typed)
    assert "sk_mine" not in result.output
    return result.exit_code, result.output


def test_login_stores_a_credential_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert login_module.login.name == "login"
    empty: Page[Workspace] = Page((), None)
    code, output = log_in(monkeypatch, empty, typed=f"{HOME}\nsk_mine\n")
    assert (code, f"Profile default calls {HOME}" in output) == (0, True)
    options = ("--url", "https://b", "--profile", "b", "--token-file", "-")
    # It may not list workspaces, but is valid.
    assert log_in(monkeypatch, PermissionDeniedError("No."), *options, typed="sk_mine\n")[0] == 0
    assert find() == (HOME, "sk_mine")
    assert find(profile="b") == ("https://b", "sk_mine")
    assert set(json.loads(profiles.path().read_text())["profiles"]) == {"default", "b"}


@pytest.mark.parametrize(
    ("error", "exit_code"), [(UnauthenticatedError("No."), 5), (UnavailableError("Later."), 6)]
)
def test_login_stores_nothing_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int
) -> None:
    code, output = log_in(monkeypatch, error, "--url", HOME, typed="sk_mine\n")
    assert (code, str(error).partition(":")[0] in output) == (exit_code, True)
    assert not profiles.path().exists()


def test_each_of_two_logins_at_once_stores_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    both_have_read = threading.Barrier(2)
    read = profiles.read

    def slow_read() -> dict[str, Profile]:
        found = read()
        # Without a lock, both read before one writes.
        with suppress(threading.BrokenBarrierError):
            both_have_read.wait(0.2)
        return found

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as threads:
        patched.setattr(profiles, "read", slow_read)
        list(threads.map(lambda name: profiles.add(name, Profile(HOME, "sk_mine")), "ab"))
    assert set(json.loads(profiles.path().read_text())["profiles"]) == {"a", "b"}


def test_a_login_that_cannot_write_leaves_no_credential_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(ClickException, match="cannot be written: No space left on device"):
        profiles.add("default", Profile(HOME, "sk_home"))
    assert list(profiles.path().parent.iterdir()) == []


def test_the_command_line_works_in_a_directory_that_was_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    monkeypatch.delenv("STATE_DIR")
    removed.rmdir()
    with pytest.raises(ClickException, match=r"no stack runs in \.state"):
        find()


def completed(typed: str) -> list[CompletionItem]:
    *words, last = typed.split(" ")
    return ShellComplete(main, {}, "evershell", "_EVERSHELL_COMPLETE").get_completions(words, last)


def test_commands_options_and_ids_are_completed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    READY.write(tmp_path)
    profiles.add("home", Profile(HOME, "sk_home"))

    def fake() -> FakeClient:
        return FakeClient(
            list_workspaces=[
                iter([Workspace("ws_1", status=WorkspaceStatus.IDLE, name="a\nb"), Workspace("x")])
            ],
            list_tasks=[iter([Task("task_1", "ws_1", status=TaskStatus.RUNNING)])],
        )

    cases: dict[str, dict[str, str | None]] = {
        "can": {"cancel": "Cancel the task that runs in WORKSPACE."},
        "cancel --fo": {"--force-after": None},
        # A newline would begin another item.
        "cancel ws": {"ws_1": r"idle a\nb"},
        "task ws_1 ": {"task_1": "running"},
        "cancel ws_1 --task ": {"task_1": "running"},
        "watch --profile h": {"home": None},
    }
    for typed, expected in cases.items():
        monkeypatch.setattr(service, "Client", fake())
        found = completed(typed)
        assert [item.value for item in found] == list(expected)
        for item in found:
            assert expected[item.value] in (None, item.help) or typed == "can"
    (tmp_path / "ready.json").unlink()
    assert completed("cancel ws") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_completion_is_printed(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert (result.exit_code, "_EVERSHELL_COMPLETE" in result.stdout) == (0, True)


def test_the_list_of_commands_imports_none_of_them() -> None:
    program = (
        "import sys; from evershell.cli.main import main; "
        "main(['--help'], standalone_mode=False); "
        "sys.exit('grpc' in sys.modules or 'rich' in sys.modules)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    for name in COMMANDS:
        assert f"  {name} " in listed.stdout
    assert "Exit codes:\n    0  done" in listed.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: main {name}")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2.5", 2.5), ("500ms", 0.5), ("10s", 10), ("1m", 60)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


def test_the_documents_have_the_table_of_exit_codes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    documented = dict(re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE))
    rows = re.findall(r"^  (\d)  ((?:.|\n     )*)$", TABLE, re.MULTILINE)
    assert documented == {code: " ".join(meaning.split()) for code, meaning in rows}
    assert {int(code) for code in documented} == {*ExitCode, 1, 2}
