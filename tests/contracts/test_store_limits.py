"""The contract of Store: limits of tasks."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.ports import Store
from evershell.core.task import Task, TaskLimits, TaskStarted
from tests.support.store.examples import NOW, USER, complete, intent, permission, task, workspace

MINUTE = TaskLimits(max_duration_seconds=60.25)
DUE = NOW + timedelta(seconds=60.25)
JUST = timedelta(microseconds=1)


async def started(store: Store, limits: TaskLimits, *, after: float = 0) -> Task:
    """A task with these limits, in a workspace of its own, that starts so many seconds later."""
    idle = workspace()
    await store.create_workspace(idle)
    new = replace(task(idle.id), limits=limits)
    await store.transition(idle.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    at = NOW + timedelta(seconds=after)
    change = await store.transition(
        idle.id, lambda locked: task_lifecycle.commit(locked, 1, new.id, [TaskStarted()], at)
    )
    assert change is not None and change.task is not None
    return change.task


async def test_the_limits_of_a_task_are_stored(store: Store) -> None:
    for limits in (
        TaskLimits(),
        TaskLimits(max_duration_seconds=0.5, max_total_tokens=10**12, force_after_seconds=0),
        TaskLimits(max_cost_nanos=10**15),
    ):
        new = await started(store, limits)
        assert await store.get_task(new.workspace_id, new.id) == new
        assert new.limits == limits


async def test_a_duration_is_reached_when_it_has_passed(store: Store) -> None:
    later = await started(store, MINUTE, after=5)
    first = await started(store, MINUTE)
    await started(store, TaskLimits(max_total_tokens=1))
    waiting = workspace()
    await store.create_workspace(waiting)
    new = replace(task(waiting.id), limits=MINUTE)
    await store.transition(waiting.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    assert await store.list_limits_reached(DUE - JUST, 9) == []
    assert await store.list_limits_reached(DUE, 9) == [first.workspace_id]
    both = [first.workspace_id, later.workspace_id]
    assert await store.list_limits_reached(DUE + timedelta(days=9), 9) == both
    assert await store.list_limits_reached(DUE + timedelta(days=9), 1) == both[:1]


async def test_what_is_cancelled_or_has_ended_is_not_due(store: Store) -> None:
    ended, cancelled = await started(store, MINUTE), await started(store, MINUTE)
    at = await store.get_workspace(ended.workspace_id)
    assert at is not None
    await complete(store, at, ended.id)
    await store.record_cancellation(permission(), cancelled.workspace_id, None, intent())
    assert await store.list_limits_reached(DUE, 9) == []


@pytest.mark.parametrize(
    ("force_after", "is_due"), [(None, True), (65.25, False), (65.26, True), (60, False)]
)
async def test_an_earlier_force_deadline_of_a_limit_is_due(
    store: Store, force_after: float | None, is_due: bool
) -> None:
    """The caller's deadline counts from NOW, that of the limit is 65.25 s after NOW."""
    new = await started(store, replace(MINUTE, force_after_seconds=5))
    requested = intent(force_after_seconds=force_after)
    await store.record_cancellation(permission(), new.workspace_id, None, requested)
    for _ in range(2):
        found = await store.list_limits_reached(DUE, 9)
        assert found == ([new.workspace_id] if is_due else [])
        await store.transition(
            new.workspace_id, lambda locked: task_lifecycle.apply_limits(locked, DUE)
        )
        is_due = False
    stored = await store.get_task(new.workspace_id, new.id)
    assert stored is not None and stored.cancel is not None
    assert stored.cancel.reason == intent().reason
