"""The contract of Store: what is due, by kind."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked
from evershell.core.due import Due, Kind
from evershell.core.ports import Store
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.store.due import BOUNDS, due, due_ids
from tests.support.store.examples import (
    NOW,
    USER,
    complete,
    intent,
    permission,
    task,
    with_task,
    workspace,
)

# How long a task may take to end after its cancellation: a model call, a tool call, and 30 s.
TO_END = timedelta(seconds=5 + 10 + 30)


async def add(store: Store, status: WorkspaceStatus, run_id: str | None = None) -> Workspace:
    added = replace(workspace(status), run_id=run_id)
    await store.create_workspace(added)
    return added


@pytest.mark.parametrize("status", WorkspaceStatus)
@pytest.mark.parametrize("run_id", ["run_1", None])
async def test_a_workspace_is_due_by_what_the_controller_has_to_do(
    store: Store, status: WorkspaceStatus, run_id: str | None
) -> None:
    added = await add(store, status, run_id)
    kinds = {
        WorkspaceStatus.PROVISIONING: Kind.START,
        WorkspaceStatus.STOPPING: Kind.STOP,
        WorkspaceStatus.SUSPENDED: Kind.SUSPENSION if run_id else None,
        WorkspaceStatus.DELETING: Kind.STOP if run_id else Kind.REMOVAL,
    }
    kind = kinds.get(status)
    found = await due(store, *(each for each in Kind if each is not Kind.CHECK))
    assert found == ([] if kind is None else [Due(kind, NOW, added)])


async def test_the_longest_due_come_first_and_a_place_continues(store: Store) -> None:
    added = [
        replace(workspace(WorkspaceStatus.STOPPING), updated_at=NOW - timedelta(seconds=age))
        for age in (1, 3, 2, 3)
    ]
    for each in added:
        await store.create_workspace(each)
    expected = sorted(added, key=lambda each: (each.updated_at, each.id))
    first = await due(store, Kind.STOP, limit=2)
    assert [each.workspace for each in first] == expected[:2]
    second = await due(store, Kind.STOP, limit=2, after=first[-1].place)
    assert [each.workspace for each in second] == expected[2:]
    assert await due(store, Kind.STOP, limit=2, after=second[-1].place) == []


async def test_each_kind_has_its_own_limit(store: Store) -> None:
    for _ in range(3):
        await add(store, WorkspaceStatus.PROVISIONING)
    stopping = await add(store, WorkspaceStatus.STOPPING)
    found = await due(store, Kind.START, Kind.STOP, limit=2)
    assert [each.kind for each in found] == [Kind.START, Kind.START, Kind.STOP]
    assert found[-1].workspace == stopping


@pytest.mark.parametrize("force_after_seconds", [None, 1, 100])
async def test_a_cancelled_task_is_overdue_after_its_bounds(
    store: Store, force_after_seconds: float | None
) -> None:
    busy, _ = await with_task(store)
    await with_task(store)
    requested = intent(force_after_seconds=force_after_seconds)
    await store.record_cancellation(permission(), busy.id, None, requested)
    # A task must end at most 2 s after its force deadline.
    bound = NOW + (timedelta(seconds=3) if force_after_seconds == 1 else TO_END)
    just = timedelta(milliseconds=1)
    assert await due_ids(store, Kind.OVERDUE, now=bound - just) == []
    (found,) = await due(store, Kind.OVERDUE, now=bound + just)
    assert (found.workspace.id, found.task and found.task.cancel) == (busy.id, requested)


async def test_an_agent_that_does_not_register_is_overdue(store: Store) -> None:
    added = await add(store, WorkspaceStatus.PROVISIONING)
    bound, just = NOW + timedelta(seconds=BOUNDS.start_seconds), timedelta(milliseconds=1)
    assert await due_ids(store, Kind.OVERDUE, now=bound - just) == []
    assert await due_ids(store, Kind.OVERDUE, now=bound + just) == [added.id]


async def test_a_cancelled_task_is_due_until_it_has_ended(store: Store) -> None:
    busy, submitted = await with_task(store)
    await with_task(store)
    assert await due(store, Kind.CANCELLATION, Kind.UNSTARTED) == []
    await store.record_cancellation(permission(), busy.id, None, intent())
    (found,) = await due(store, Kind.CANCELLATION, Kind.UNSTARTED)
    assert found.task == replace(submitted, cancel=intent())
    await complete(store, busy, submitted.id)
    assert await due(store, Kind.CANCELLATION, Kind.UNSTARTED) == []


async def test_a_cancelled_task_that_no_agent_has_is_due(store: Store) -> None:
    waking = await add(store, WorkspaceStatus.SUSPENDED)

    def wake(locked: Locked) -> Change:
        return task_lifecycle.submit(locked, task(waking.id), USER)

    await store.transition(waking.id, wake)
    assert await due(store, Kind.UNSTARTED) == []
    await store.record_cancellation(permission(), waking.id, None, intent())
    (found,) = await due(store, Kind.UNSTARTED)
    assert (found.workspace.id, found.task and found.task.cancel) == (waking.id, intent())
    await store.transition(waking.id, lambda locked: task_lifecycle.end_unstarted(locked, NOW))
    assert await due(store, Kind.UNSTARTED) == []
