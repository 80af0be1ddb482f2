"""The service itself cancels a task that has reached a limit."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core import task_lifecycle, task_limits, tasks
from evershell.core.change import Change, Locked
from evershell.core.due import Kind
from evershell.core.errors import Failure
from evershell.core.event import EventType, Origin
from evershell.core.prices import PriceList, Prices
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    TaskEnded,
    TaskLimits,
    TaskStarted,
    TaskStatus,
)
from evershell.core.tasks import SubmitTask
from tests.support.store.due import due_ids
from tests.support.world import NOW, World, caller, intent, iteration, locked_busy
from tests.unit.core.committing import types

MINUTE = TaskLimits(max_duration_seconds=60)
# With the model "m", an iteration has 2 input tokens and 3 output tokens, and costs 0.15 USD.
PRICES = PriceList(
    own={"m": Prices({"input_tokens": [(0, 0)], "output_tokens": [(0, 5 * 10**10)]})}
)
COMPLETED = TaskEnded(status=TaskStatus.COMPLETED, result="done")


def busy(wanted: TaskLimits, *, age: float = 0, **fields: Any) -> Locked:
    """Returns a running task with these limits. It started `age` seconds ago."""
    locked = locked_busy()
    assert locked.task is not None
    started = replace(locked.task, limits=wanted, started_at=NOW - timedelta(seconds=age), **fields)
    return Locked(locked.workspace, started)


def commit(locked: Locked, *events: AgentEvent) -> Change:
    assert locked.task is not None
    epoch, task_id = locked.workspace.epoch, locked.task.id
    return task_lifecycle.commit(locked, epoch, task_id, events, NOW, PRICES)


@pytest.mark.parametrize(("age", "is_reached"), [(59.9, False), (60, True), (3600, True)])
def test_a_duration_counts_from_the_start(age: float, is_reached: bool) -> None:
    change = task_lifecycle.apply_limits(busy(MINUTE, age=age), NOW)
    assert types(change) == ["task_cancel_requested"] * is_reached
    assert change.task is not None
    if is_reached:
        cancel = change.task.cancel
        assert cancel is not None
        assert (cancel.requested_by, cancel.credential_kind) == ("system:limit", "system")
        assert (cancel.requested_at, cancel.reason) == (NOW, "max_duration reached: 60 s")
        assert (cancel.force_at, cancel.force_requested_by) == (None, None)
        (event,) = change.events
        assert event.payload["cancel"]["requested_by"] == "system:limit"


def test_a_task_that_has_not_started_has_no_duration() -> None:
    locked = busy(MINUTE, age=100)
    assert locked.task is not None
    waiting = replace(locked.task, started_at=None, status=TaskStatus.DELIVERED)
    assert task_lifecycle.apply_limits(Locked(locked.workspace, waiting), NOW).events == ()
    assert task_lifecycle.apply_limits(Locked(locked.workspace, None), NOW).events == ()


def test_the_iteration_that_reaches_the_tokens_is_the_last() -> None:
    """Each iteration uses 5 tokens, so the second one reaches the limit of 10."""
    locked = busy(TaskLimits(max_total_tokens=10))
    first = commit(locked, iteration(1))
    assert types(first) == ["iteration_completed"]
    second = commit(Locked(first.workspace, first.task), iteration(2))
    assert types(second) == ["iteration_completed", "task_cancel_requested"]
    assert second.task is not None and second.task.cancel is not None
    assert second.task.cancel.reason == "max_total_tokens reached: 10 of 10 tokens"
    ended = commit(Locked(second.workspace, second.task), COMPLETED)
    assert ended.task is not None
    assert (ended.task.status, ended.task.result) == (TaskStatus.CANCELLED, "done")


def of_model(number: int, model: str = "m") -> IterationCompleted:
    return iteration(number, model=model)


def test_the_iteration_that_reaches_the_cost_is_the_last() -> None:
    first = commit(busy(TaskLimits(max_cost_nanos=300_000_000)), of_model(1))
    assert types(first) == ["iteration_completed"]
    second = commit(Locked(first.workspace, first.task), of_model(2))
    assert types(second) == ["iteration_completed", "task_cancel_requested"]
    assert second.limit == "max_cost"
    assert second.task is not None and second.task.cancel is not None
    assert second.task.usage.cost_nanos == 300_000_000
    assert second.task.cancel.reason == "max_cost reached: 0.30 of 0.30 USD"


def test_a_limit_that_is_approached_is_announced_once() -> None:
    wanted = TaskLimits(max_total_tokens=12, max_cost_nanos=500_000_001)
    change = commit(busy(wanted), of_model(1), of_model(2), of_model(3))
    assert types(change) == [
        "iteration_completed",
        "iteration_completed",
        "task_limit_approached",
        "iteration_completed",
        "task_limit_approached",
        "task_cancel_requested",
    ]
    assert [event.payload for event in change.events if "approached" in event.type] == [
        {"limit": "max_total_tokens", "used": "10", "maximum": "12"},
        {"limit": "max_cost", "used": "0.45", "maximum": "0.500000001"},
    ]
    # The task has used more than 80 % only after the tenth of these iterations.
    change = commit(busy(TaskLimits(max_cost_nanos=1_700_000_000)), *map(of_model, range(1, 12)))
    assert types(change).index("task_limit_approached") == 10
    assert types(change).count("task_limit_approached") == 1


def test_a_limit_of_a_task_that_is_being_cancelled_is_not_announced() -> None:
    locked = busy(TaskLimits(max_total_tokens=6), cancel=intent())
    assert types(commit(locked, of_model(1))) == ["iteration_completed"]


def test_an_unknown_cost_stays_unknown() -> None:
    change = commit(busy(TaskLimits()), of_model(1), of_model(2, "x"), of_model(3), COMPLETED)
    assert types(change)[-1] == "task_completed"
    assert change.task is not None and change.task.usage.cost_nanos is None
    assert change.task.status is TaskStatus.COMPLETED
    assert "cost" not in change.events[-1].payload["usage"]


def test_a_model_without_a_price_ends_a_task_with_a_limit_of_cost() -> None:
    change = commit(busy(TaskLimits(max_cost_nanos=10**12)), of_model(1), of_model(2, "x"))
    assert types(change) == ["iteration_completed"] * 2 + ["task_cancel_requested"]
    assert change.task is not None and change.task.cancel is not None
    reason = "max_cost cannot be checked: a model without a price was used"
    assert change.task.cancel.reason == reason


def test_a_limit_of_cost_is_refused_if_the_model_has_no_price() -> None:
    with pytest.raises(Failure) as raised:
        SubmitTask(
            workspace_id="ws_1",
            description="x",
            limits=TaskLimits(max_cost_nanos=1),
            origin=Origin(),
            model_without_price="x",
        )
    assert raised.value.details["fields"] == {
        "limits.max_cost": "cannot be checked: the model x has no price"
    }
    SubmitTask(workspace_id="ws_1", description="x", origin=Origin(), model_without_price="x")


@pytest.mark.parametrize("wanted", [TaskLimits(max_total_tokens=5), MINUTE])
def test_a_limit_that_is_reached_decides_the_end(wanted: TaskLimits) -> None:
    """The agent may commit the end in the same call, or before a controller checks the limit."""
    change = commit(busy(wanted, age=60), iteration(1), COMPLETED)
    assert sorted(types(change)) == [
        "iteration_completed",
        "task_cancel_requested",
        "task_completed",
    ]
    assert types(change)[-1] == "task_completed"
    assert change.task is not None
    assert (change.task.status, change.task.result) == (TaskStatus.CANCELLED, "done")


@pytest.mark.parametrize("age", [59, 60])
def test_a_limit_that_is_reached_decides_the_end_of_a_lost_task(age: float) -> None:
    locked = busy(MINUTE, age=age)
    change = task_lifecycle.end_open_task(locked, "its agent died", NOW, work_stopped=True)
    assert change.task is not None
    assert change.task.status == ("cancelled" if age == 60 else "failed")
    assert types(change)[-1] == "task_completed"
    assert change.limit == ("max_duration" if age == 60 else None)


def test_a_commit_without_events_applies_the_limits() -> None:
    assert types(commit(busy(MINUTE, age=60))) == ["task_cancel_requested"]


def test_a_task_within_its_limits_is_not_cancelled() -> None:
    wanted = TaskLimits(max_duration_seconds=60, max_total_tokens=6, force_after_seconds=1)
    change = commit(busy(wanted, age=59), TaskStarted(), iteration(1), COMPLETED)
    assert types(change) == ["iteration_completed", "task_limit_approached", "task_completed"]
    assert change.task is not None and change.task.status is TaskStatus.COMPLETED


def test_the_force_deadline_counts_from_the_limit() -> None:
    wanted = replace(MINUTE, force_after_seconds=5)
    change = task_lifecycle.apply_limits(busy(wanted, age=62), NOW)
    assert change.task is not None and change.task.cancel is not None
    assert change.task.cancel.force_at == NOW + timedelta(seconds=3)
    assert change.task.cancel.force_requested_by == "system:limit"
    again = task_lifecycle.apply_limits(Locked(change.workspace, change.task), NOW)
    assert (again.task, again.events) == (change.task, ())


def test_a_limit_does_not_replace_a_callers_cancellation() -> None:
    """Like a second caller, the limit can only make the force deadline earlier."""
    first = intent(force_at=NOW + timedelta(seconds=9), force_requested_by="user_9")
    plain = task_lifecycle.apply_limits(busy(MINUTE, age=60, cancel=first), NOW)
    assert plain.task is not None and plain.task.cancel == first
    wanted = replace(MINUTE, force_after_seconds=5)
    forced = task_lifecycle.apply_limits(busy(wanted, age=60, cancel=first), NOW)
    assert forced.events == ()
    assert forced.task is not None and forced.task.cancel == replace(
        first, force_at=NOW + timedelta(seconds=5), force_requested_by=task_limits.REQUESTER
    )


async def test_the_limits_of_a_submission_are_those_of_the_task(world: World) -> None:
    idle = await world.add()
    wanted = TaskLimits(max_duration_seconds=60, max_total_tokens=9, force_after_seconds=0)
    request = SubmitTask(
        workspace_id=idle.id, description="true", limits=wanted, origin=Origin("req_s")
    )
    task = await tasks.submit_task(
        caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )
    assert (await world.task(idle.id, task.id)).limits == wanted
    world.clock.advance(30)
    await world.commit(idle.id, task.id, TaskStarted())
    world.clock.advance(59)
    assert await due_ids(world.store, Kind.TASK_LIMIT, now=world.clock()) == []
    world.clock.advance(1)
    assert await due_ids(world.store, Kind.TASK_LIMIT, now=world.clock()) == [idle.id]
    await world.commit(idle.id, task.id, iteration(1))
    assert await due_ids(world.store, Kind.TASK_LIMIT, now=world.clock()) == []
    requested = [
        event
        for event in await world.events(idle.id)
        if event.type is EventType.TASK_CANCEL_REQUESTED
    ]
    assert len(requested) == 1


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("limits.max_duration", {"max_duration_seconds": 0}),
        ("limits.max_duration", {"max_duration_seconds": -1.5}),
        ("limits.max_duration", {"max_duration_seconds": 30 * 86_400 + 1}),
        ("limits.max_total_tokens", {"max_total_tokens": 0}),
        ("limits.max_total_tokens", {"max_total_tokens": 10**12 + 1}),
        ("limits.max_cost", {"max_cost_nanos": 0}),
        ("limits.max_cost", {"max_cost_nanos": 10**15 + 1}),
        ("limits.force_after", {"max_total_tokens": 1, "force_after_seconds": 86_401}),
        ("limits.force_after", {"force_after_seconds": 5}),
        ("limits.include_descendants", {"include_descendants": True}),
    ],
)
def test_the_limits_are_checked(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(Failure) as raised:
        SubmitTask(
            workspace_id="ws_1", description="x", limits=TaskLimits(**fields), origin=Origin()
        )
    assert list(raised.value.details["fields"]) == [field]


def test_only_the_limits_of_a_root_include_the_descendants() -> None:
    with pytest.raises(Failure, match="is for a task without a parent"):
        SubmitTask(
            workspace_id="ws_1",
            description="x",
            limits=TaskLimits(max_total_tokens=1, include_descendants=True),
            parent_task_id="task_p",
            origin=Origin(),
        )


def test_the_duration_of_a_tree_counts_from_the_end_of_a_root_that_was_never_started() -> None:
    root = busy(MINUTE).task
    assert root is not None
    ended = replace(root, started_at=None, completed_at=NOW)
    assert task_limits.reached(ended, NOW + timedelta(seconds=59)) is None
    assert task_limits.reached(ended, NOW + timedelta(seconds=60)) is not None
