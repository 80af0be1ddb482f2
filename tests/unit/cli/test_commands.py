"""The other commands of callers: output and exit codes, with a fake of the client."""

import json
from typing import Any

import click
import pytest

from evershell.client import (
    AuditEntry,
    CancelIntent,
    DeadlineExceededError,
    Event,
    EventType,
    IterationCompleted,
    ModelCall,
    ModelCallStatus,
    SubmittedTask,
    TaskCancelRequested,
    TaskCompleted,
    TaskNotFoundError,
    TaskStarted,
    TaskStatus,
    TaskSubmitted,
    ToolCall,
    ToolResult,
    ToolStatus,
    UnavailableError,
    Workspace,
    WorkspaceProvisioned,
    WorkspaceStatus,
)
from tests.support.fake_client import AT, FakeClient, error_of, run, task

NASTY = "[bold]\x1b[2J"
SUBMITTED = SubmittedTask("task_1", "ws_1", TaskStatus.DELIVERED)


def test_submit_prints_the_id_alone_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClient(submit_task=[SUBMITTED, SUBMITTED])
    result = run(
        monkeypatch, fake, "submit", "ws_1", "-", "--metadata", "a=b=c", "--max-iterations", "3",
        "--idempotency-key", "nightly", input="sleep 1\n",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "task_1\n")
    assert "evershell watch ws_1 --task task_1" in result.stderr
    named = {
        "metadata": {"a": "b=c"},
        "max_iterations": 3,
        "limits": None,
        "idempotency_key": "nightly",
    }
    assert fake.calls == [("submit_task", "ws_1", "sleep 1\n", named)]
    as_json = run(monkeypatch, fake, "submit", "ws_1", "true", "--json")
    assert json.loads(as_json.stdout)["status"] == "delivered"
    wrong = run(monkeypatch, fake, "submit", "ws_1", "true", "--metadata", "a")
    assert (wrong.exit_code, "is not NAME=VALUE" in wrong.stderr) == (2, True)


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
    ended = task(status, created_at=AT, completed_at=AT, reason="because", result="42")
    fake = FakeClient(submit_task=[SUBMITTED], get_task=[ended])
    result = run(monkeypatch, fake, "submit", "ws_1", "true", "--wait", "0s")
    assert (result.exit_code, result.stdout) == (exit_code, "task_1\n")
    assert result.stderr.startswith(f"{status}, 0 iterations completed\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_in_a_submission_says_what_is_known(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    fake = FakeClient(submit_task=[SUBMITTED], get_task=[KeyboardInterrupt()])
    waiting = run(monkeypatch, fake, "submit", "ws_1", "true", "--wait", "9s", *options)
    assert waiting.exit_code == 1
    if options:
        assert json.loads(waiting.stdout)["task_id"] == "task_1"
    else:
        assert waiting.stdout == "task_1\n"
        assert "evershell watch ws_1 --task task_1" in waiting.stderr
    fake = FakeClient(submit_task=[KeyboardInterrupt()])
    calling = run(monkeypatch, fake, "submit", "ws_1", "true", *options)
    assert (calling.exit_code, calling.stdout) == (1, "")
    assert "submitted? Not known. `evershell tasks ws_1` lists" in calling.stderr


def test_ctrl_c_in_a_submission_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClient(submit_task=[KeyboardInterrupt()])
    result = run(monkeypatch, fake, "submit", "ws_1", "true", "--url", "http://other:1")
    assert "`evershell tasks --url http://other:1 ws_1` lists" in result.stderr


@pytest.mark.parametrize("options", [[], ["--wait", "9s"]])
def test_a_task_whose_id_cannot_be_written_is_named_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    echo = click.echo

    def closed(text: str, file: object = None, *, err: bool = False, **more: Any) -> None:
        if not err:
            raise BrokenPipeError
        echo(text, err=True)

    monkeypatch.setattr(click, "echo", closed)
    fake = FakeClient(submit_task=[SUBMITTED])
    result = run(monkeypatch, fake, "submit", "ws_1", "true", *options)
    assert result.exit_code != 0
    assert "evershell watch ws_1 --task task_1" in result.stderr


def test_numbers_beyond_all_limits_cause_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, FakeClient(), "tasks", "ws_1", "--limit", "9" * 30)
    assert (result.exit_code, "is not in the range" in result.stderr) == (2, True)
    fake = FakeClient(list_audit_entries=[iter([])])
    # There was no such time.
    assert run(monkeypatch, fake, "audit", "--since", "1000000d").exit_code == 0
    assert fake.calls[0][-1]["start_time"] is None


def test_a_description_that_is_not_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, FakeClient(), "submit", "ws_1", "-", input=b"\xff")
    assert (result.exit_code, "it is not a text" in result.stderr) == (2, True)


def test_lists_are_tables_without_a_limit_of_width(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 50
    fake = FakeClient(
        list_tasks=[iter([task(TaskStatus.RUNNING, description=NASTY + long, created_at=AT)] * 3)],
        list_workspaces=[
            iter([Workspace("ws_1", status=WorkspaceStatus.BUSY, name=NASTY, created_at=AT)]),
            iter([]),
        ],
    )
    tasks = run(monkeypatch, fake, "tasks", "ws_1", "--limit", "2")
    header, *rows = tasks.stdout.splitlines()
    assert header.split() == ["TASK", "STATUS", "ITERATIONS", "CREATED", "ENDED", "DESCRIPTION"]
    assert (
        rows
        == [rf"task_1  running  0           2023-11-14T22:13:20Z  -      [bold]\x1b[2J{long}"] * 2
    )
    workspaces = run(monkeypatch, fake, "workspaces")
    assert r"ws_1       busy    -             2023-11-14T22:13:20Z  [bold]\x1b[2J" in (
        workspaces.stdout
    )
    empty = run(monkeypatch, fake, "workspaces")
    assert (empty.stdout, "has no workspaces" in empty.stderr) == ("", True)


def test_lists_are_json_like_those_of_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeClient(
        list_tasks=[iter([task(TaskStatus.RUNNING)])],
        list_workspaces=[iter([Workspace("ws_1")])],
        list_audit_entries=[iter([AuditEntry("aud_1")])],
    )
    for command, name in (
        ("tasks ws_1", "tasks"),
        ("workspaces", "workspaces"),
        ("audit", "entries"),
    ):
        printed = json.loads(run(monkeypatch, fake, *command.split(), "--json").stdout)
        assert len(printed[name]) == 1 and "id" in printed[name][0]


def test_a_task_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = task(
        TaskStatus.CANCELLED,
        description="one\ntwo",
        forced=True,
        created_at=AT,
        started_at=AT,
        completed_at=AT,
        cancel_requested_at=AT,
        cancel_requested_by="key_1",
        cancel_reason=NASTY,
        result="partial",
        metadata={"a": "b"},
    )
    result = run(monkeypatch, FakeClient(get_task=[ended]), "task", "ws_1", "task_1")
    lines = result.stdout.splitlines()
    assert lines[0] == "task task_1: cancelled, forced"
    assert r"  reason     [bold]\x1b[2J" in lines
    assert "  metadata   a=b" in lines


@pytest.mark.parametrize(
    ("command", "method"),
    [
        ("show ws_1", "get_workspace"),
        ("create --name mine", "create_workspace"),
        ("stop ws_1", "stop_workspace"),
        ("resume ws_1", "resume_workspace"),
    ],
)
def test_a_workspace_is_shown_after_each_command(
    monkeypatch: pytest.MonkeyPatch, command: str, method: str
) -> None:
    found = Workspace("ws_1", status=WorkspaceStatus.IDLE, name="mine", created_at=AT)
    fake = FakeClient(**{method: [found, found]})
    result = run(monkeypatch, fake, "workspace", *command.split())
    assert result.stdout.startswith("workspace ws_1: idle\n  name       mine\n")
    as_json = run(monkeypatch, fake, "workspace", *command.split(), "--json")
    assert json.loads(as_json.stdout)["status"] == "idle"
    assert [call[0] for call in fake.calls] == [method] * 2


def test_the_audit_log_is_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = AuditEntry("aud_1", time=AT, rpc="CancelTask", outcome="accepted", reason=NASTY)
    fake = FakeClient(list_audit_entries=[iter([entry])])
    result = run(monkeypatch, fake, "audit", "--workspace", "ws_1", "--since", "1d")
    assert r"CancelTask  accepted" in result.stdout and r"[bold]\x1b[2J" in result.stdout
    named: dict[str, Any] = fake.calls[0][1]
    assert named["workspace_id"] == "ws_1" and named["start_time"].tzinfo is not None


def event(seq: int, kind: EventType, payload: Any, task_id: str | None = "task_1") -> Event:
    return Event(seq, kind, "ws_1", time=AT, task_id=task_id, payload=payload)


MODEL_CALL = ModelCall("scripted", "", 0, 0, 5, ModelCallStatus.INTERRUPTED)
TOOL_CALL = ToolCall("1", "shell", "{}", ToolResult(ToolStatus.EXITED, -9, "", 0), 1200)
EVENTS = [
    event(1, EventType.WORKSPACE_PROVISIONED, WorkspaceProvisioned(1), None),
    event(2, EventType.TASK_SUBMITTED, TaskSubmitted(NASTY, 100, "key_1")),
    event(3, EventType.TASK_STARTED, TaskStarted(1)),
    event(4, EventType.ITERATION_COMPLETED, IterationCompleted(1, MODEL_CALL, TOOL_CALL)),
    event(5, EventType.TASK_CANCEL_REQUESTED, TaskCancelRequested(CancelIntent("key_2", "", AT))),
    event(6, EventType.ITERATION_COMPLETED, IterationCompleted(2, MODEL_CALL)),
    event(7, EventType.TASK_COMPLETED, TaskCompleted(TaskStatus.CANCELLED, iterations=2)),
    event(8, EventType.UNSPECIFIED, None),
]


class Watched:
    """The events of a watch, which then fails."""

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
        "task_completed task_1 cancelled after 2 iterations",
        "unspecified task_1",
    ]
    fake = FakeClient(watch=[Watched(EVENTS[:2])])
    as_json = run(monkeypatch, fake, "watch", "ws_1", "--after", "3", "--json")
    assert [json.loads(line)["seq"] for line in as_json.stdout.splitlines()] == ["1", "2"]
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
    # Its stream would never end.
    unknown = FakeClient(get_task=[error_of(TaskNotFoundError)])
    assert run(monkeypatch, unknown, *arguments).exit_code == 5


def test_each_line_of_a_watch_is_json_also_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (error_of(UnavailableError), error_of(DeadlineExceededError)):
        fake = FakeClient(watch=[Watched(EVENTS[:2], error)])
        result = run(monkeypatch, fake, "watch", "ws_1", "--json")
        assert (result.exit_code, result.stderr) == (6, "")
        *events, last = (json.loads(line) for line in result.stdout.splitlines())
        assert [event["seq"] for event in events] == ["1", "2"]
        assert last["error"]["code"] == error.slug


def test_a_watch_that_is_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Watched):
        def __next__(self) -> Event:
            for found in self._events:
                return found
            raise KeyboardInterrupt

    watched = Interrupted(EVENTS[:3])
    result = run(monkeypatch, FakeClient(watch=[watched]), "watch", "ws_1")
    assert result.exit_code == 1
    assert "Go on with --after 3." in result.stderr
    assert watched.is_closed
