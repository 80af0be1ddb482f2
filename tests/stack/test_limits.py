"""The limits of a task, with real agents."""

from datetime import datetime, timedelta

from tests.support.stack import Gate, Workspace


def test_a_task_is_cancelled_at_its_duration(workspace: Workspace, gate: Gate) -> None:
    limits = {"max_duration": "1.500s"}
    task_id = workspace.submit(gate.command, "touch never", limits=limits)
    workspace.await_phase(task_id, "tool_call")
    assert workspace.task(task_id)["limits"] == limits | {"include_descendants": False}
    requested = workspace.await_event("task_cancel_requested", task_id)["task_cancel_requested"]
    cancel = requested["cancel"]
    assert (cancel["requested_by"], cancel["credential_kind"], cancel["reason"]) == (
        "system:limit",
        "system",
        "max_duration reached: 1.5 s",
    )
    # The iteration in flight ends normally.
    assert workspace.task(task_id)["status"] == "running"
    gate.open()
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 1, False)
    assert not (workspace.stack.files(workspace.id) / "never").exists()
    task = workspace.task(task_id)
    started, asked = (
        datetime.fromisoformat(task[name]) for name in ("started_at", "cancel_requested_at")
    )
    # The controller checks the limits about every second.
    assert timedelta(seconds=1.5) <= asked - started < timedelta(seconds=30)
    workspace.await_end(workspace.submit("true"))


def test_the_iteration_that_reaches_the_tokens_is_the_last(workspace: Workspace) -> None:
    lines = ("tokens: 45 true", "tokens: 45 true", "tokens: 45 true", "touch never")
    task_id = workspace.submit(*lines, limits={"max_total_tokens": "100"})
    approached = workspace.await_event("task_limit_approached", task_id)["task_limit_approached"]
    assert approached == {"limit": "max_total_tokens", "used": "90", "maximum": "100"}
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"]) == ("cancelled", 3)
    assert end["reason"] == "max_total_tokens reached: 135 of 100 tokens"
    # The scripted model of the tests costs nothing.
    nothing = {"currency_code": "USD", "units": "0", "nanos": 0}
    assert end["usage"]["cost"] == workspace.task(task_id)["usage"]["cost"] == nothing
