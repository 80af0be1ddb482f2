"""The command `cancel`: its output and its exit codes, with a fake client."""

import json
from typing import Any

import pytest
from click.testing import Result

from evershell.cli import progress
from evershell.client import (
    AgentUnreachableError,
    CallError,
    CancelOutcome,
    CancelResult,
    PermissionDeniedError,
    TaskNotEndedError,
    TaskPhase,
    TaskStatus,
    UnauthenticatedError,
    UnavailableError,
    ValidationError,
)
from evershell.client.errors import BY_CODE
from tests.unit.cli.fake_client import AT, FakeClient, cancelled, error_of, run, task

IDLE = CancelResult("ws_1", CancelOutcome.NO_ACTIVE_TASK)
RUNNING, CANCELLED = task(TaskStatus.RUNNING), task(TaskStatus.CANCELLED, completed_at=AT)


def cancel(monkeypatch: pytest.MonkeyPatch, answer: Any, *arguments: str, **more: Any) -> Result:
    return run(monkeypatch, FakeClient(cancel=[answer], **more), "cancel", "ws_1", *arguments)


def test_an_accepted_cancellation_prints_requester_time_reason_and_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = cancelled(CancelOutcome.ACCEPTED, iterations=1, phase=TaskPhase.TOOL_CALL)
    fake = FakeClient(cancel=[answer])
    result = run(
        monkeypatch, fake, "cancel", "ws_1", "--task", "task_1", "--reason", "why",
        "--force-after", "1m", "--descendants",
    )  # fmt: skip
    assert fake.opened == ("http://127.0.0.1:8081", "sk_secret")
    named = {"reason": "why", "force_after": 60.0, "include_descendants": True}
    assert fake.calls == [("cancel", "ws_1", "task_1", named)]
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "accepted: the cancellation of task task_1 in workspace ws_1 is recorded."
    assert "  task          running, 1 iteration completed, now in a tool call" in lines
    assert lines[-1] == "  follow        evershell watch ws_1 --task task_1"


@pytest.mark.parametrize(
    ("answer", "exit_code", "expected"),
    [
        (cancelled(CancelOutcome.ACCEPTED), 0, "the task then ends cancelled"),
        (cancelled(CancelOutcome.ALREADY_REQUESTED), 0, "had been recorded before"),
        (
            cancelled(CancelOutcome.ALREADY_FINISHED, TaskStatus.CANCELLED, completed_at=AT),
            3,
            "had ended cancelled at 2023-11-14T22:13:20Z",
        ),
        (
            cancelled(CancelOutcome.ALREADY_FINISHED, TaskStatus.FAILED, end_reason="no luck"),
            3,
            "no luck",
        ),
        (IDLE, 3, "nothing runs in workspace ws_1"),
    ],
)
@pytest.mark.parametrize("wait", [[], ["--wait", "0"]])
def test_each_outcome_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    answer: CancelResult,
    exit_code: int,
    expected: str,
    wait: list[str],
) -> None:
    result = cancel(monkeypatch, answer, *wait, get_task=[RUNNING])
    # The wait ends before the task does.
    assert result.exit_code == (7 if wait and exit_code == 0 else exit_code)
    assert expected in result.stdout
    assert result.stderr == ""


def test_the_end_is_waited_for_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.0)
    answers = [RUNNING, UnavailableError("Later."), RUNNING, CANCELLED]
    accepted = cancelled(CancelOutcome.ACCEPTED)
    result = cancel(monkeypatch, accepted, "--wait", "20s", get_task=answers)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == (
        "  ended         cancelled at 2023-11-14T22:13:20Z, 0.0 s after the request, "
        "0 iterations completed. The workspace can take its next task."
    )
    as_json = cancel(monkeypatch, accepted, "--wait", "20s", "--json", get_task=[CANCELLED])
    assert json.loads(as_json.stdout)["task"]["status"] == "cancelled"


def test_a_credential_that_may_not_read_waits_with_the_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accepted = cancelled(CancelOutcome.ACCEPTED)
    denied = PermissionDeniedError("No.")
    ended = cancelled(CancelOutcome.ALREADY_FINISHED, TaskStatus.CANCELLED, completed_at=AT)
    result = cancel(
        monkeypatch, accepted, "--wait", "9s", get_task=[denied], cancel_and_wait=[ended]
    )
    assert (result.exit_code, "ended         cancelled" in result.stdout) == (0, True)
    late = TaskNotEndedError("Not yet.", RUNNING)
    result = cancel(
        monkeypatch, accepted, "--wait", "9s", get_task=[denied], cancel_and_wait=[late]
    )
    assert result.exit_code == 7


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_wait_that_fails_does_not_hide_the_recorded_cancellation(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    accepted = cancelled(CancelOutcome.ACCEPTED)
    revoked = error_of(UnauthenticatedError)
    result = cancel(monkeypatch, accepted, "--wait", "9s", *options, get_task=[revoked])
    assert (result.exit_code, "accepted" in result.stdout) == (7, True)
    assert result.stderr.startswith("unauthenticated: What happened.")


@pytest.mark.parametrize(
    ("slug", "exit_code"),
    [
        ("validation_error", 5),
        ("workspace_not_found", 5),
        ("workspace_stopped", 5),
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
    result = cancel(monkeypatch, error_of(BY_CODE[slug], task_id="task_1"))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith(f"{slug}: What happened.\n  request       request_1\n")
    assert ("evershell watch" in result.stderr) == (slug == "agent_unreachable")
    assert ("safe to repeat" in result.stderr) == (slug in ("unavailable", "deadline_exceeded"))


def test_json_output_is_the_body_of_the_rest_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    result = cancel(monkeypatch, cancelled(CancelOutcome.ACCEPTED), "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["outcome"], printed["task"]["status"]) == (
        0,
        "accepted",
        "running",
    )
    assert (printed["requested_at"], printed["task"]["iterations"]) == ("2023-11-14T22:13:20Z", 0)
    details = {"fields": {"reason": "too long"}}
    result = cancel(monkeypatch, error_of(ValidationError, **details), "--json")
    assert result.exit_code == 5
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["details"]) == ("validation_error", details)


NASTY = "\x1b[2J\x9b2J\x7f\u202e\r\n"


def test_control_characters_of_an_answer_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"task_id": NASTY, "requested_by": NASTY, "reason": NASTY}
    nasty = task(TaskStatus.FAILED, end_reason=NASTY)
    answers: list[CancelResult | CallError] = [
        CancelResult(NASTY, CancelOutcome.ACCEPTED, task=task(TaskStatus.RUNNING), **fields),
        CancelResult(NASTY, CancelOutcome.ALREADY_FINISHED, task=nasty, **fields),
        CancelResult(NASTY, CancelOutcome.NO_ACTIVE_TASK, reason=NASTY),
        AgentUnreachableError(NASTY, NASTY, {"task_id": NASTY}),
        ValidationError(NASTY, NASTY, {"fields": {NASTY: NASTY}}),
    ]
    for each in answers:
        for arguments in ((), ("--json",)):
            result = cancel(monkeypatch, each, *arguments)
            printed = result.output.replace("\n", "")
            assert printed.isprintable(), ascii(printed)
            assert r"\x1b[2J" in printed or r"\u001b[2J" in printed


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ctrl_c_ends_the_wait_and_says_that_the_cancellation_is_recorded(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    accepted, interrupt = cancelled(CancelOutcome.ACCEPTED), KeyboardInterrupt()
    result = cancel(monkeypatch, accepted, "--wait", "9s", *options, get_task=[interrupt])
    assert result.exit_code == 130
    assert result.stderr == (
        "interrupted: The cancellation of task task_1 stands. Only the wait was ended.\n"
        "  follow        evershell watch ws_1 --task task_1\n"
    )
    if options:
        assert json.loads(result.stdout)["outcome"] == "accepted"


def test_ctrl_c_in_the_call_says_that_its_outcome_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = cancel(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stdout) == (130, "")
    assert "recorded?     Not known. With --task it is safe to repeat the call." in result.stderr


def test_the_follow_up_calls_the_same_service(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = cancelled(CancelOutcome.ACCEPTED)
    result = cancel(monkeypatch, answer, "--url", "http://127.0.0.1:8081")
    assert result.stdout.endswith(
        "evershell watch --url http://127.0.0.1:8081 ws_1 --task task_1\n"
    )
