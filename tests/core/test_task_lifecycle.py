"""From submission to the one end of a task: each step, its repeats, and its races."""

from dataclasses import replace
from datetime import timedelta

import pytest

from server.core import lifecycle
from server.core.errors import Failure
from server.core.lifecycle import AgentEvent, Change, Ending, Session, Started
from server.core.task import Phase, TaskStatus, Usage
from server.core.workspace import WorkspaceStatus
from tests.support.world import NOW, USER, busy_session, intent, iteration, task, workspace

LATER = NOW + timedelta(minutes=1)
PROPOSALS = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


def then(change: Change) -> Session:
    """The session after the change was committed; a task that has ended is nobody's current task."""
    open_task = (
        change.task if change.task is not None and not change.task.status.is_terminal else None
    )
    return Session(change.workspace, open_task)


def types(change: Change) -> list[str]:
    return [str(event.type) for event in change.events]


def commit(
    session: Session, *events: AgentEvent, epoch: int = 1, task_id: str | None = None
) -> Change:
    assert session.task is not None
    return lifecycle.commit(session, epoch, task_id or session.task.id, events, LATER)


def test_a_task_makes_an_idle_workspace_busy() -> None:
    idle = workspace()
    submitted = task(idle.id, description="ls", max_iterations=7)
    change = lifecycle.submit(Session(idle, None), submitted, USER, "req_1")
    assert change.workspace == replace(
        idle, status=WorkspaceStatus.BUSY, current_task_id=submitted.id
    )
    assert (change.task, types(change)) == (submitted, ["task_submitted"])
    assert change.events[0].payload == {
        "description": "ls",
        "max_iterations": 7,
        "submitted_by": USER,
    }
    assert (change.events[0].request_id, change.events[0].task_id) == ("req_1", submitted.id)


def test_a_second_task_is_refused_and_told_of_the_first() -> None:
    session = busy_session()
    with pytest.raises(Failure) as raised:
        lifecycle.submit(session, task(session.workspace.id), USER, "req_1")
    assert session.task is not None
    assert (raised.value.code, raised.value.details["task_id"]) == (
        "workspace_busy",
        session.task.id,
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (WorkspaceStatus.PROVISIONING, "workspace_provisioning"),
        (WorkspaceStatus.STOPPING, "workspace_stopped"),
        (WorkspaceStatus.STOPPED, "workspace_stopped"),
        (WorkspaceStatus.FAILED, "workspace_failed"),
    ],
)
def test_a_workspace_that_is_not_up_takes_no_task(status: WorkspaceStatus, code: str) -> None:
    down = workspace(status)
    with pytest.raises(Failure) as raised:
        lifecycle.submit(Session(down, None), task(down.id), USER, "req_1")
    assert raised.value.code == code


def test_an_acknowledged_task_is_delivered() -> None:
    session = busy_session(TaskStatus.SUBMITTED)
    assert session.task is not None
    change = lifecycle.deliver(session, session.task.id)
    assert change == Change(session.workspace, replace(session.task, status=TaskStatus.DELIVERED))


@pytest.mark.parametrize("status", [TaskStatus.DELIVERED, TaskStatus.RUNNING])
def test_an_acknowledgement_that_comes_late_changes_nothing(status: TaskStatus) -> None:
    session = busy_session(status)
    assert session.task is not None
    assert lifecycle.deliver(session, session.task.id) == lifecycle.unchanged(session)
    assert lifecycle.fail_delivery(session, session.task.id, "gone", LATER) == lifecycle.unchanged(
        session
    )


def test_the_acknowledgement_of_an_earlier_task_changes_nothing() -> None:
    for session in (busy_session(TaskStatus.SUBMITTED), Session(workspace(), None)):
        assert lifecycle.deliver(session, "task_earlier") == lifecycle.unchanged(session)
        assert lifecycle.fail_delivery(
            session, "task_earlier", "gone", LATER
        ) == lifecycle.unchanged(session)


def test_a_task_that_could_not_be_handed_over_ends() -> None:
    session = busy_session(TaskStatus.SUBMITTED)
    assert session.task is not None
    change = lifecycle.fail_delivery(session, session.task.id, "gone", LATER)
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


def test_a_cancelled_task_that_could_not_be_handed_over_ends_cancelled() -> None:
    session = busy_session(TaskStatus.SUBMITTED, cancel=intent())
    assert session.task is not None
    change = lifecycle.fail_delivery(session, session.task.id, "gone", LATER)
    assert change.task is not None and change.task.status is TaskStatus.CANCELLED


@pytest.mark.parametrize("status", [TaskStatus.SUBMITTED, TaskStatus.DELIVERED])
def test_the_agent_begins(status: TaskStatus) -> None:
    change = commit(busy_session(status), Started())
    assert change.task is not None
    assert (change.task.status, change.task.started_at, types(change)) == (
        TaskStatus.RUNNING,
        LATER,
        ["task_started"],
    )


def test_an_iteration_is_counted_and_leaves_its_phase() -> None:
    session = busy_session()
    assert session.task is not None
    session = replace(session, task=replace(session.task, phase=Phase.TOOL_CALL))
    change = commit(session, iteration(1, "out"), iteration(2, "", content="said"))
    assert change.task is not None
    assert change.task.usage == Usage(input_tokens=4, output_tokens=6, model_calls=2, tool_calls=2)
    assert (change.task.iterations, change.task.phase, change.task.result) == (
        2,
        Phase.NONE,
        "said",
    )
    assert types(change) == ["iteration_completed", "iteration_completed"]


def test_an_iteration_without_a_tool_call_counts_none() -> None:
    change = commit(
        busy_session(),
        lifecycle.Iterated(1, {"model_call": {"content": "an answer", "output_tokens": "5"}}),
    )
    assert change.task is not None
    assert change.task.usage == Usage(output_tokens=5, model_calls=1)
    assert change.task.result == "an answer"


def test_an_interrupted_model_call_is_counted_and_leaves_its_text_as_the_result() -> None:
    call = {"content": "It is nea", "input_tokens": "7", "status": "interrupted"}
    forced = lifecycle.Ending(status=TaskStatus.CANCELLED, forced=True)
    change = commit(
        busy_session(cancel=intent()),
        iteration(1, "out"),
        lifecycle.Iterated(2, {"model_call": call}),
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
        Usage(input_tokens=9, output_tokens=3, model_calls=2, tool_calls=1),
    )
    assert types(change) == ["iteration_completed", "iteration_completed", "task_completed"]


def test_an_iteration_that_says_nothing_keeps_what_there_was() -> None:
    change = commit(busy_session(), iteration(1, "out"), iteration(2, ""))
    assert change.task is not None and change.task.result == "out"


def test_what_is_committed_already_changes_nothing() -> None:
    first = commit(busy_session(TaskStatus.DELIVERED), Started(), iteration(1))
    again = commit(then(first), Started(), iteration(1))
    assert again == lifecycle.unchanged(then(first))
    more = commit(then(first), Started(), iteration(1), iteration(2))
    assert types(more) == ["iteration_completed"]


def test_an_iteration_out_of_order_is_refused() -> None:
    with pytest.raises(Failure) as raised:
        commit(busy_session(), iteration(2))
    assert raised.value.code == "invalid_state"


def test_nothing_follows_the_end() -> None:
    change = commit(
        busy_session(),
        Ending(status=TaskStatus.FAILED),
        iteration(1),
        Ending(status=TaskStatus.COMPLETED),
    )
    assert change.task is not None
    assert (change.task.status, change.task.iterations, types(change)) == (
        TaskStatus.FAILED,
        0,
        ["task_completed"],
    )
    assert lifecycle.commit(
        then(change), 1, change.task.id, [Started()], LATER
    ) == lifecycle.unchanged(then(change))


def test_a_commit_for_another_task_changes_nothing() -> None:
    session = busy_session()
    assert commit(session, iteration(1), task_id="task_earlier") == lifecycle.unchanged(session)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_commit_of_another_epoch_changes_nothing(epoch: int) -> None:
    session = busy_session()
    assert commit(
        session, iteration(1), Ending(status=TaskStatus.COMPLETED), epoch=epoch
    ) == lifecycle.unchanged(session)


@pytest.mark.parametrize("proposed", [TaskStatus.COMPLETED, TaskStatus.FAILED])
def test_an_end_is_what_the_agent_proposes(proposed: TaskStatus) -> None:
    change = commit(
        busy_session(), iteration(1), Ending(status=proposed, reason="why", result="what")
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
def test_a_recorded_intent_decides_over_every_proposal(
    status: TaskStatus, proposed: TaskStatus
) -> None:
    change = commit(
        busy_session(status, cancel=intent()), Ending(status=proposed, result="the answer")
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


def test_a_task_cut_short_keeps_what_it_had() -> None:
    change = commit(
        busy_session(cancel=intent()), iteration(1, "partial"), Ending(status=TaskStatus.CANCELLED)
    )
    assert change.task is not None and change.task.result == "partial"


def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    change = commit(busy_session(), Ending(status=TaskStatus.CANCELLED))
    assert change.task is not None
    assert (change.task.status, change.task.reason) == (
        TaskStatus.FAILED,
        "its agent ended it, and no cancellation was recorded",
    )


def test_a_forced_end_says_so() -> None:
    change = commit(busy_session(cancel=intent()), Ending(status=TaskStatus.CANCELLED, forced=True))
    assert change.task is not None and change.task.forced
    assert change.events[0].payload["forced"] is True


def test_a_cancellation_is_recorded_once() -> None:
    first = lifecycle.request_cancel(busy_session(), intent())
    assert first.task is not None and first.task.cancel == intent()
    assert types(first) == ["task_cancel_requested"]
    assert (first.events[0].request_id, first.events[0].time) == ("req_9", intent().requested_at)
    second = lifecycle.request_cancel(then(first), intent(reason="other", requested_by="user_8"))
    assert second == lifecycle.unchanged(then(first))


@pytest.mark.parametrize(
    ("stood", "asked", "stands"),
    [(9, 5, 5), (5, 9, 5), (None, 5, 5), (5, None, 5), (None, None, None)],
)
def test_of_deadlines_the_earliest_stands(
    stood: int | None, asked: int | None, stands: int | None
) -> None:
    def at(seconds: int | None) -> object:
        return None if seconds is None else NOW + timedelta(seconds=seconds)

    session = busy_session(cancel=intent(force_at=at(stood), force_requested_by=stood and "user_9"))
    asked_for = intent(
        reason="other",
        requested_by="user_8",
        force_at=at(asked),
        force_requested_by=asked and "user_8",
    )
    change = lifecycle.request_cancel(session, asked_for)
    whose = stands and ("user_9" if stands == stood else "user_8")
    assert change.task is not None and change.task.cancel == intent(
        force_at=at(stands), force_requested_by=whose
    )
    assert change.events == ()


def test_without_a_task_there_is_nothing_to_cancel() -> None:
    session = Session(workspace(), None)
    assert lifecycle.request_cancel(session, intent()) == lifecycle.unchanged(session)
