"""Commands without their own test module, with a fake client: their output and exit codes."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from typing import Any, cast

import pytest
from click.testing import Result

from evershell.cli.exit_codes import TABLE, ExitCode
from evershell.cli.get import get
from evershell.cli.main import COMMANDS
from evershell.cli.values import DURATION
from evershell.client import (
    AgentUnreachableError,
    CallerInfo,
    CancelIntent,
    Client,
    CurrentIteration,
    DeadlineExceededError,
    Event,
    EventOf,
    EventType,
    IterationCompleted,
    ModelCall,
    ModelCallStatus,
    RunningCall,
    SubmittedTask,
    TaskCancelRequested,
    TaskCompleted,
    TaskLimits,
    TaskNotFoundError,
    TaskPhase,
    TaskStarted,
    TaskStatus,
    TaskSubmitted,
    ToolCall,
    ToolResult,
    ToolStatus,
    UnavailableError,
    Usage,
    Workspace,
    WorkspaceProvisioned,
    WorkspaceStatus,
    WorkStopped,
)
from evershell.version import VERSION
from tests.support.stack import ROOT
from tests.unit.cli.fake_client import AT, FakeClient, error_of, run, task

NASTY = "[bold]\x1b[2J"
SUBMITTED = SubmittedTask("task_1", "ws_1", TaskStatus.DELIVERED)


def test_submit_prints_the_id_alone_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClient(submit_task=[SUBMITTED, SUBMITTED])
    result = run(
        monkeypatch, fake, "submit", "ws_1", "-", "--metadata", "a=b=c", "--max-iterations", "3",
        "--idempotency-key", "nightly", "--parent", "task_0", "--max-cost", "0.50",
        input="sleep 1\n",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "task_1\n")
    assert "evershell watch ws_1 --task task_1" in result.stderr
    named = {
        "metadata": {"a": "b=c"},
        "max_iterations": 3,
        "limits": TaskLimits(max_cost=Decimal("0.5")),
        "parent_task_id": "task_0",
        "idempotency_key": "nightly",
    }
    assert fake.calls == [("submit_task", "ws_1", "sleep 1\n", named)]
    as_json = run(monkeypatch, fake, "submit", "ws_1", "true", "--json")
    assert json.loads(as_json.stdout)["status"] == "delivered"
    wrong = run(monkeypatch, fake, "submit", "ws_1", "true", "--metadata", "a")
    assert (wrong.exit_code, "is not NAME=VALUE" in wrong.stderr) == (2, True)
    wrong = run(monkeypatch, fake, "submit", "ws_1", "true", "--max-cost", "-1")
    assert (wrong.exit_code, "is not an amount in USD" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [
        (TaskStatus.COMPLETED, 0),
        (TaskStatus.FAILED, 8),
        (TaskStatus.CANCELLED, 8),
        (TaskStatus.DELIVERY_FAILED, 8),
        (TaskStatus.RUNNING, 7),
    ],
)
def test_the_end_of_a_submitted_task_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, status: TaskStatus, exit_code: int
) -> None:
    ended = task(status, created_at=AT, completed_at=AT, end_reason="because", result="42")
    fake = FakeClient(submit_task=[SUBMITTED], get_task=[ended])
    result = run(monkeypatch, fake, "submit", "ws_1", "true", "--wait", "0s")
    assert (result.exit_code, result.stdout) == (exit_code, "task_1\n")
    assert result.stderr.startswith(f"{status}: 0 iterations completed\n")


@pytest.mark.parametrize(
    ("cost", "forced", "shown"),
    [
        (Decimal("1E-9"), False, "0.000000001 USD, as reported"),
        (Decimal("0.000157"), True, "at least 0.000157 USD, as reported"),
        (None, False, "unknown"),
    ],
)
def test_a_task_is_shown_with_its_cost(
    monkeypatch: pytest.MonkeyPatch, cost: Decimal | None, forced: bool, shown: str
) -> None:
    limits = TaskLimits(max_cost=Decimal("0.5"))
    read = task(
        TaskStatus.RUNNING,
        created_at=AT,
        usage=Usage(cost=cost),
        limits=limits,
        forced=forced,
    )
    fake = FakeClient(get_task=[read], get_current_iteration=[CurrentIteration("ws_1", "task_1")])
    result = run(monkeypatch, fake, "task", "ws_1", "task_1")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert ["cost", shown] in lines
    assert not [line for line in lines if line[0] == "now"]
    assert ["limits", "0.5 USD"] in lines


def test_a_task_that_runs_is_shown_with_its_calls_and_their_last_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = RunningCall(
        TaskPhase.TOOL_CALL,
        name="shell",
        arguments='{"command": "make"}',
        duration_ms=65_000,
        output="".join(f"{NASTY}{number}\n" for number in range(30)),
    )
    model = RunningCall(TaskPhase.MODEL_CALL, duration_ms=900)
    current = CurrentIteration("ws_1", "task_1", number=2, calls=(command, model))
    fake = FakeClient(
        get_task=[task(TaskStatus.RUNNING)] * 2,
        get_current_iteration=[current, error_of(AgentUnreachableError)],
    )
    shown = run(monkeypatch, fake, "task", "ws_1", "task_1")
    first, *output, last = (line.strip() for line in shown.stdout.splitlines()[-12:])
    now = f"{'now':<14}"
    assert first == f'{now}tool call for 1:05 min: shell {{"command": "make"}}'
    assert output == [rf"[bold]\x1b[2J{n}" for n in range(20, 30)]
    assert last == f"{now}model call for 0 s"
    silent = run(monkeypatch, fake, "task", "ws_1", "task_1")
    assert silent.stdout.splitlines()[-1].split(maxsplit=1) == ["now", "What happened."]
    assert silent.exit_code == 0


def test_lists_are_tables_without_a_limit_of_width(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 50
    running = task(TaskStatus.RUNNING, description=NASTY + long, created_at=AT)
    fake = FakeClient(list_tasks=[iter([running] * 3), iter([running])], list_workspaces=[iter([])])
    tasks = run(monkeypatch, fake, "tasks", "ws_1", "--limit", "2")
    header, *rows = tasks.stdout.splitlines()
    assert header.split() == ["TASK", "STATUS", "ITERATIONS", "CREATED", "ENDED", "DESCRIPTION"]
    assert len(rows) == 2 and all(row.endswith(rf"[bold]\x1b[2J{long}") for row in rows)
    assert tasks.stderr == "2 tasks; there are more, which --limit leaves out.\n"
    active = run(monkeypatch, fake, "tasks", "--active")
    assert active.stdout.split()[1] == "WORKSPACE" and fake.calls[-1][-1]["active"]
    empty = run(monkeypatch, fake, "workspaces")
    assert (empty.stdout, "has no workspaces" in empty.stderr) == ("", True)


def test_a_list_has_everything_and_can_be_narrowed_by_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = [
        Workspace(f"ws_{number}", status=WorkspaceStatus.IDLE if number % 3 else kind)
        for number, kind in enumerate([WorkspaceStatus.BUSY, WorkspaceStatus.FAILED] * 150)
    ]

    def list_(*arguments: str) -> Result:
        fake = FakeClient(list_workspaces=[iter(listed)])
        return run(monkeypatch, fake, "workspaces", *arguments)

    everything = list_()
    assert (len(everything.stdout.splitlines()), everything.stderr) == (301, "300 workspaces.\n")
    assert len(json.loads(list_("--json").stdout)["workspaces"]) == 300
    narrow = list_("--status", "busy", "--status", "failed")
    assert (len(narrow.stdout.splitlines()), narrow.stderr) == (101, "100 workspaces.\n")
    one = list_("--status", "busy", "--limit", "1", "--json")
    assert [each["id"] for each in json.loads(one.stdout)["workspaces"]] == ["ws_0"]
    wrong = list_("--status", "bussy")
    assert (wrong.exit_code, "'busy'" in wrong.stderr) == (2, True)


def event(seq: int, kind: EventType, payload: Any, task_id: str | None = "task_1") -> Event:
    made: Any = EventOf(seq, kind, "ws_1", AT, task_id, None, None, payload)
    return cast("Event", made)


MODEL_CALL = ModelCall("scripted", "", 0, 0, 5, ModelCallStatus.INTERRUPTED)
TOOL_CALL = ToolCall("1", "shell", "{}", ToolResult(ToolStatus.EXITED, -9, "", 0), 1200)
INTERRUPTED = ToolCall("2", "search", "{}", ToolResult(ToolStatus.INTERRUPTED, 0, "", 0), 1)
EVENTS = [
    event(1, EventType.WORKSPACE_PROVISIONED, WorkspaceProvisioned(1), None),
    event(2, EventType.TASK_SUBMITTED, TaskSubmitted(NASTY, 100, "key_1")),
    event(3, EventType.TASK_STARTED, TaskStarted(1)),
    event(4, EventType.ITERATION_COMPLETED, IterationCompleted(1, MODEL_CALL, TOOL_CALL)),
    event(5, EventType.TASK_CANCEL_REQUESTED, TaskCancelRequested(CancelIntent("key_2", "", AT))),
    event(6, EventType.ITERATION_COMPLETED, IterationCompleted(2, MODEL_CALL)),
    event(
        7,
        EventType.TASK_COMPLETED,
        TaskCompleted(
            TaskStatus.CANCELLED,
            iterations=2,
            work_stopped=WorkStopped.UNKNOWN,
            iteration_lost=True,
        ),
    ),
    event(8, EventType.UNSPECIFIED, None),
    event(
        9,
        EventType.ITERATION_COMPLETED,
        IterationCompleted(3, MODEL_CALL, TOOL_CALL, (TOOL_CALL, INTERRUPTED)),
    ),
]


class Watched:
    """A watch that yields `events` and then raises `error`, if there is one."""

    def __init__(self, events: list[Event], error: Exception | None = None) -> None:
        self._events = iter(events)
        self._error = error
        self.is_closed = False

    def __iter__(self) -> "Watched":
        return self

    def __next__(self) -> Event:
        for found in self._events:
            return found
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        self.is_closed = True


def test_watch_prints_a_line_for_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(EVENTS)
    result = run(monkeypatch, FakeClient(watch=[watched]), "watch", "ws_1")
    assert (result.exit_code, watched.is_closed) == (0, True)
    assert [" ".join(line.split()[2:]) for line in result.stdout.splitlines()] == [
        "workspace_provisioned epoch 1",
        r"task_submitted task_1 by key_1: [bold]\x1b[2J",
        "task_started task_1 epoch 1",
        "iteration_completed task_1 1: shell exited -9, 1200 ms",
        "task_cancel_requested task_1 by key_2",
        "iteration_completed task_1 2: model call interrupted",
        "task_completed task_1 cancelled after 2 iterations; one more was lost, "
        "some of its processes may still run",
        "unspecified task_1",
        "iteration_completed task_1 3: shell exited -9, 1200 ms; search interrupted, 1 ms",
    ]
    fake = FakeClient(watch=[Watched(EVENTS[:2])])
    as_json = run(monkeypatch, fake, "watch", "ws_1", "--after", "3", "--json")
    messages = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [message["event"]["seq"] for message in messages] == ["1", "2"]
    assert fake.calls == [("watch", "ws_1", {"after": 3, "task_id": None, "timeout": None})]


def test_the_end_of_a_watched_task_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("watch", "ws_1", "--task", "task_1")
    found = task(TaskStatus.RUNNING)
    client = FakeClient(get_task=[found], watch=[Watched(EVENTS[:7])])
    assert run(monkeypatch, client, *arguments).exit_code == 8
    late = Watched(EVENTS[:3], DeadlineExceededError("The timeout of the watch has passed."))
    client = FakeClient(get_task=[found], watch=[late])
    result = run(monkeypatch, client, *arguments, "--wait", "1s")
    assert (result.exit_code, result.stderr) == (7, "")
    # There is no watch, because the stream of an unknown task would never end.
    unknown = FakeClient(get_task=[error_of(TaskNotFoundError)])
    assert run(monkeypatch, unknown, *arguments).exit_code == 5


def test_each_line_of_a_watch_is_json_also_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (error_of(UnavailableError), error_of(DeadlineExceededError)):
        fake = FakeClient(watch=[Watched(EVENTS[:2], error)])
        result = run(monkeypatch, fake, "watch", "ws_1", "--json")
        assert (result.exit_code, result.stderr) == (6, "")
        *events, last = (json.loads(line) for line in result.stdout.splitlines())
        assert [message["event"]["seq"] for message in events] == ["1", "2"]
        assert last["error"]["code"] == error.code


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2.5", 2.5), ("500ms", 0.5), ("10s", 10), ("1m", 60)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1w", "1 s", "nan", "1e3"])
def test_an_invalid_duration_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    fake = FakeClient()
    result = run(monkeypatch, fake, "cancel", "ws_1", "--wait", text)
    assert (result.exit_code, fake.calls) == (2, [])
    assert "write 500ms, 10s, 1m, 1h or 30d" in result.stderr


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
    assert "Exit codes:\n      0  done" in listed.stdout


@pytest.mark.parametrize(("typed", "meant"), [("cancle", "cancel"), ("workspace shwo", "show")])
def test_a_mistyped_command_is_named(
    monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    result = run(monkeypatch, FakeClient(), *typed.split())
    assert (result.exit_code, f"Did you mean '{meant}'?" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("-h", "The cancel button of an agent platform."),
        ("help", "The cancel button of an agent platform."),
        ("cancel -h", "cancel [OPTIONS] [WORKSPACE]"),
        ("help cancel", "cancel [OPTIONS] [WORKSPACE]"),
        ("help workspace show", "workspace show [OPTIONS]"),
        ("version", f"evershell, version {VERSION}"),
    ],
)
def test_the_usual_words_for_help_work(
    monkeypatch: pytest.MonkeyPatch, typed: str, shown: str
) -> None:
    result = run(monkeypatch, FakeClient(), *typed.split())
    assert (result.exit_code, shown in result.stdout) == (0, True)


def test_the_documents_have_the_table_of_exit_codes() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE))
    rows = re.findall(r"^ +(\d+)  ((?:.|\n {7})*)$", TABLE, re.MULTILINE)
    assert documented == {code: " ".join(meaning.split()) for code, meaning in rows}
    assert {int(code) for code in documented} == {*ExitCode, 1, 2}


def test_each_read_of_the_client_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name.removeprefix("get_") for name in dir(Client) if name.startswith("get_")}
    assert names and names == {name.replace("-", "_") for name in get.commands}
    who = CallerInfo(org_id="org_1", actor_id="key_1", scopes=("audit:read",))
    fake = FakeClient(get_caller=[who], get_task=[task(TaskStatus.RUNNING)])
    printed = run(monkeypatch, fake, "get", "caller")
    assert json.loads(printed.stdout) == who.to_dict()
    printed = run(monkeypatch, fake, "get", "task", "ws_1", "task_1")
    assert json.loads(printed.stdout)["status"] == "running"
    assert fake.calls[-1][-1] == {"workspace_id": "ws_1", "task_id": "task_1"}
    helped = run(monkeypatch, fake, "get", "task", "--help")
    assert "Reads one task." in helped.stdout
