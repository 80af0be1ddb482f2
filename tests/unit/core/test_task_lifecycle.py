"""The life cycle of a task: its delivery, its agent's commits, its cancellation and its end."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.task import IterationCompleted, Phase, TaskEnded, TaskStarted, TaskStatus, Usage
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import NOW, USER, intent, iteration, locked_busy, task, workspace
from tests.unit.core.committing import LATER, after, commit, types

PROPOSALS = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


@pytest.mark.parametrize("status", [TaskStatus.SUBMITTED, TaskStatus.DELIVERED])
def test_an_agent_starts_a_task(status: TaskStatus) -> None:
    change = commit(locked_busy(status), TaskStarted())
    assert change.task is not None
    assert (change.task.status, change.task.started_at, types(change)) == (
        TaskStatus.RUNNING,
        LATER,
        ["task_started"],
    )


def test_an_iteration_is_counted_and_resets_the_phase() -> None:
    locked = locked_busy()
    assert locked.task is not None
    locked = replace(locked, task=replace(locked.task, phase=Phase.TOOL_CALL))
    change = commit(locked, iteration(1, "out"), iteration(2, "", content="said"))
    assert change.task is not None
    assert change.task.usage == Usage(
        input_tokens=4, output_tokens=6, model_calls=2, tool_calls=2, cost_nanos=None
    )
    assert (change.task.iterations, change.task.phase, change.task.result) == (
        2,
        Phase.NONE,
        "said",
    )
    assert types(change) == ["iteration_completed", "iteration_completed"]


def test_an_iteration_without_a_tool_call_counts_no_tool_call() -> None:
    change = commit(
        locked_busy(),
        IterationCompleted(1, {"model_call": {"content": "an answer", "output_tokens": "5"}}),
    )
    assert change.task is not None
    assert change.task.usage == Usage(output_tokens=5, model_calls=1, cost_nanos=None)
    assert change.task.result == "an answer"


def test_all_tool_calls_of_an_iteration_are_counted_and_the_last_output_is_the_result() -> None:
    calls = [{"result": {"output": output}} for output in ("one", "two", "")]
    payload = {"model_call": {}, "tool_call": calls[0], "tool_calls": calls}
    change = commit(locked_busy(), IterationCompleted(1, payload))
    assert change.task is not None
    assert change.task.usage == Usage(model_calls=1, tool_calls=3)
    assert change.task.result == "two"


def test_an_interrupted_model_call_is_counted_and_its_text_is_the_result() -> None:
    call = {"content": "It is nea", "input_tokens": "7", "status": "interrupted"}
    forced = TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    change = commit(
        locked_busy(cancel=intent(force_at=NOW)),
        iteration(1, "out"),
        IterationCompleted(2, {"model_call": call}),
        forced,
    )
    assert change.task is not None
    assert (change.task.status, change.task.forced, change.task.result) == (
        TaskStatus.CANCELLED,
        True,
        "It is nea",
    )
    assert (change.task.iterations, change.task.usage) == (
        2,
        Usage(input_tokens=9, output_tokens=3, model_calls=2, tool_calls=1, cost_nanos=None),
    )
    assert types(change) == ["iteration_completed", "iteration_completed", "task_completed"]


def test_a_repeated_commit_changes_nothing() -> None:
    first = commit(locked_busy(TaskStatus.DELIVERED), TaskStarted(), iteration(1))
    again = commit(after(first), TaskStarted(), iteration(1))
    assert again == unchanged(after(first))
    more = commit(after(first), TaskStarted(), iteration(1), iteration(2))
    assert types(more) == ["iteration_completed"]


def test_an_iteration_out_of_order_is_refused() -> None:
    with pytest.raises(Failure) as raised:
        commit(locked_busy(), iteration(2))
    assert raised.value.slug == "invalid_state"


def test_events_after_the_end_are_ignored() -> None:
    change = commit(
        locked_busy(),
        TaskEnded(status=TaskStatus.FAILED),
        iteration(1),
        TaskEnded(status=TaskStatus.COMPLETED),
    )
    assert change.task is not None
    assert (change.task.status, change.task.iterations, types(change)) == (
        TaskStatus.FAILED,
        0,
        ["task_completed"],
    )
    assert task_lifecycle.commit(
        after(change), 1, change.task.id, [TaskStarted()], LATER
    ) == unchanged(after(change))


def test_a_commit_for_another_task_changes_nothing() -> None:
    locked = locked_busy()
    assert commit(locked, iteration(1), task_id="task_earlier") == unchanged(locked)


@pytest.mark.parametrize("proposed", [TaskStatus.COMPLETED, TaskStatus.FAILED])
def test_a_task_ends_as_the_agent_proposes(proposed: TaskStatus) -> None:
    change = commit(
        locked_busy(), iteration(1), TaskEnded(status=proposed, reason="why", result="what")
    )
    assert change.task is not None
    assert (change.task.status, change.task.reason, change.task.result) == (proposed, "why", "what")
    payload = change.events[-1].payload
    assert payload["status"] == proposed
    assert (payload["iterations"], payload["usage"]["tool_calls"], payload["work_stopped"]) == (
        1,
        1,
        "yes",
    )
    assert "cancel" not in payload


@pytest.mark.parametrize("proposed", PROPOSALS)
@pytest.mark.parametrize("status", [TaskStatus.SUBMITTED, TaskStatus.DELIVERED, TaskStatus.RUNNING])
def test_a_recorded_intent_overrides_every_proposal(
    status: TaskStatus, proposed: TaskStatus
) -> None:
    change = commit(
        locked_busy(status, cancel=intent()), TaskEnded(status=proposed, result="the answer")
    )
    assert change.task is not None
    assert (change.task.status, change.task.result, change.task.reason) == (
        TaskStatus.CANCELLED,
        "the answer",
        "enough",
    )
    payload = change.events[0].payload
    assert (payload["status"], payload["result"], payload["cancel"]["requested_by"]) == (
        "cancelled",
        "the answer",
        "user_9",
    )
    assert change.workspace.status is WorkspaceStatus.IDLE


def test_a_cancelled_end_without_an_intent_is_a_failure() -> None:
    change = commit(locked_busy(), TaskEnded(status=TaskStatus.CANCELLED))
    assert change.task is not None
    assert (change.task.status, change.task.reason) == (
        TaskStatus.FAILED,
        "its agent ended it, and no cancellation was recorded",
    )


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_an_end_is_forced_only_if_that_was_asked_for(is_asked_for: bool) -> None:
    cancel = intent(force_at=NOW if is_asked_for else None)
    change = commit(locked_busy(cancel=cancel), TaskEnded(status=TaskStatus.CANCELLED, forced=True))
    assert change.task is not None and change.task.forced is is_asked_for
    assert change.events[0].payload["forced"] is is_asked_for


def test_a_cancellation_is_recorded_once() -> None:
    first = task_lifecycle.request_cancel(locked_busy(), intent())
    assert first.task is not None and first.task.cancel == intent()
    assert types(first) == ["task_cancel_requested"]
    assert first.events[0].time == intent().requested_at
    second = task_lifecycle.request_cancel(
        after(first), intent(reason="other", requested_by="user_8")
    )
    assert second == unchanged(after(first))


@pytest.mark.parametrize(
    ("earlier", "requested", "expected"),
    [(9, 5, 5), (5, 9, 5), (None, 5, 5), (5, None, 5), (None, None, None)],
)
def test_the_earliest_force_deadline_applies(
    earlier: int | None, requested: int | None, expected: int | None
) -> None:
    def at(seconds: int | None) -> object:
        return None if seconds is None else NOW + timedelta(seconds=seconds)

    locked = locked_busy(
        cancel=intent(force_at=at(earlier), force_requested_by=earlier and "user_9")
    )
    second = intent(
        reason="other",
        requested_by="user_8",
        force_at=at(requested),
        force_requested_by=requested and "user_8",
    )
    change = task_lifecycle.request_cancel(locked, second)
    requester = expected and ("user_9" if expected == earlier else "user_8")
    assert change.task is not None and change.task.cancel == intent(
        force_at=at(expected), force_requested_by=requester
    )
    assert change.events == ()


def test_every_event_of_a_change_names_the_call_that_caused_it() -> None:
    locked = locked_busy()
    origin = Origin("req_1", "a" * 32)
    change = task_lifecycle.request_cancel(locked, intent()).caused_by(origin)
    assert [event.origin for event in change.events] == [origin]


def test_a_task_makes_an_idle_workspace_busy() -> None:
    idle = workspace()
    submitted = task(idle.id, description="ls", max_iterations=7)
    change = task_lifecycle.submit(Locked(idle, None), submitted, USER)
    assert change.workspace == replace(
        idle, status=WorkspaceStatus.BUSY, current_task_id=submitted.id
    )
    assert (change.task, types(change)) == (submitted, ["task_submitted"])
    assert change.events[0].payload == {
        "description": "ls",
        "max_iterations": 7,
        "submitted_by": USER,
    }
    assert change.events[0].task_id == submitted.id


def test_the_refusal_of_a_second_task_names_the_first() -> None:
    locked = locked_busy()
    with pytest.raises(Failure) as raised:
        task_lifecycle.submit(locked, task(locked.workspace.id), USER)
    assert locked.task is not None
    assert (raised.value.slug, raised.value.details["task_id"]) == (
        "workspace_busy",
        locked.task.id,
    )


@pytest.mark.parametrize(
    ("status", "slug"),
    [
        (WorkspaceStatus.PROVISIONING, "workspace_provisioning"),
        (WorkspaceStatus.STOPPING, "workspace_stopped"),
        (WorkspaceStatus.STOPPED, "workspace_stopped"),
        (WorkspaceStatus.FAILED, "workspace_failed"),
    ],
)
def test_a_workspace_that_is_not_up_takes_no_task(status: WorkspaceStatus, slug: str) -> None:
    down = workspace(status)
    with pytest.raises(Failure) as raised:
        task_lifecycle.submit(Locked(down, None), task(down.id), USER)
    assert raised.value.slug == slug


def test_an_acknowledged_task_is_delivered() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED)
    assert locked.task is not None
    change = task_lifecycle.deliver(locked, locked.task.id)
    assert change == Change(locked.workspace, replace(locked.task, status=TaskStatus.DELIVERED))


@pytest.mark.parametrize("status", [TaskStatus.DELIVERED, TaskStatus.RUNNING])
def test_a_late_acknowledgement_changes_nothing(status: TaskStatus) -> None:
    locked = locked_busy(status)
    assert locked.task is not None
    assert task_lifecycle.deliver(locked, locked.task.id) == unchanged(locked)
    assert task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER) == unchanged(locked)


def test_the_acknowledgement_of_an_earlier_task_changes_nothing() -> None:
    for locked in (locked_busy(TaskStatus.SUBMITTED), Locked(workspace(), None)):
        assert task_lifecycle.deliver(locked, "task_earlier") == unchanged(locked)
        assert task_lifecycle.fail_delivery(locked, "task_earlier", "gone", LATER) == unchanged(
            locked
        )


def test_a_task_that_cannot_be_delivered_ends() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED)
    assert locked.task is not None
    change = task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER)
    assert change.task is not None
    assert (change.task.status, change.task.reason, change.task.completed_at) == (
        TaskStatus.DELIVERY_FAILED,
        "gone",
        LATER,
    )
    assert (change.workspace.status, change.workspace.current_task_id) == (
        WorkspaceStatus.IDLE,
        None,
    )
    assert types(change) == ["task_completed"]


def test_a_cancelled_task_that_cannot_be_delivered_ends_cancelled() -> None:
    locked = locked_busy(TaskStatus.SUBMITTED, cancel=intent())
    assert locked.task is not None
    change = task_lifecycle.fail_delivery(locked, locked.task.id, "gone", LATER)
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED
