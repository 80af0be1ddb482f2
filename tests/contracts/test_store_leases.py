"""The contract of Store: leases, and what the fleet controller reads."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from evershell.core.change import unchanged
from evershell.core.due import Kind
from evershell.core.ports import Store
from evershell.core.task import Task
from evershell.core.workspace import WANTS_POD, Workspace, WorkspaceStatus
from evershell.store.memory.memory_store import MemoryStore
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from tests.support.store.due import UNSETTLED, due
from tests.support.store.examples import (
    NOW,
    complete,
    intent,
    permission,
    set_status,
    with_task,
    workspace,
)
from tests.support.world import FakeClock

LEASE_SECONDS = 30.0
LATE = NOW + timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.now = NOW
    return clock


@pytest.fixture
async def store(store_url: str | None, clock: FakeClock) -> AsyncIterator[Store]:
    """Each implementation of Store in turn, with a clock that replaces the database's clock."""
    if store_url is None:
        yield MemoryStore(clock)
        return
    async with open_pool(store_url) as opened:
        yield PostgresStore(opened, clock=clock)


async def lease(store: Store, workspace_id: str, seconds: float = LEASE_SECONDS) -> Workspace:
    """Renews the lease as Register does."""
    change = await store.transition(
        workspace_id, lambda locked: replace(unchanged(locked), lease_seconds=seconds)
    )
    assert change is not None
    return change.workspace


async def leased(store: Store) -> Workspace:
    idle = workspace()
    await store.create_workspace(idle)
    return await lease(store, idle.id)


async def unsettled(store: Store) -> list[Workspace]:
    return [each.workspace for each in await due(store, *UNSETTLED)]


async def renew(store: Store, workspace_id: str, epoch: int = 1) -> tuple[Workspace, Task | None]:
    found = await store.renew_lease(workspace_id, epoch, LEASE_SECONDS)
    assert found is not None
    return found.locked.workspace, found.locked.task


async def test_a_transition_renews_the_lease(store: Store, clock: FakeClock) -> None:
    idle = await leased(store)
    assert idle.lease_expires_at == NOW + timedelta(seconds=LEASE_SECONDS)
    assert await store.get_workspace(idle.id) == idle
    # A renewal never shortens a lease.
    assert await lease(store, idle.id, 10) == idle
    clock.advance(1)
    assert (await lease(store, idle.id)).lease_expires_at == clock() + timedelta(
        seconds=LEASE_SECONDS
    )


@pytest.mark.parametrize(("passed", "left"), [(0, 30), (5.5, 24.5), (6.5, 30), (29, 30), (60, 30)])
async def test_a_lease_is_renewed_when_a_fifth_has_passed(
    store: Store, clock: FakeClock, passed: float, left: float
) -> None:
    idle = await leased(store)
    clock.advance(passed)
    found = await store.renew_lease(idle.id, 1, LEASE_SECONDS)
    assert found is not None
    assert found.lease_seconds == left
    assert found.locked.task is None
    stored = await store.get_workspace(idle.id)
    assert found.locked.workspace == stored
    assert stored is not None
    assert stored.lease_expires_at == clock() + timedelta(seconds=left)


async def test_a_renewal_returns_the_current_task_and_its_intent(store: Store) -> None:
    busy, submitted = await with_task(store)
    busy = await lease(store, busy.id)
    assert await renew(store, busy.id) == (busy, submitted)
    await store.record_cancellation(permission(), busy.id, None, intent())
    _, cancelled = await renew(store, busy.id)
    assert cancelled == replace(submitted, cancel=intent())
    await complete(store, busy, submitted.id)
    idle, ended = await renew(store, busy.id)
    assert (idle.status, ended) == (WorkspaceStatus.IDLE, None)


async def test_a_workspace_without_a_lease_is_not_renewed(store: Store) -> None:
    idle = workspace()
    await store.create_workspace(idle)
    found = await store.renew_lease(idle.id, 1, LEASE_SECONDS)
    assert found is not None
    assert (found.locked.workspace, found.lease_seconds) == (idle, float("-inf"))
    assert await store.renew_lease("ws_unknown", 1, LEASE_SECONDS) is None


@pytest.mark.parametrize(
    ("epoch", "status"),
    [
        (2, WorkspaceStatus.IDLE),
        (0, WorkspaceStatus.IDLE),
        (1, WorkspaceStatus.FAILED),
        (1, WorkspaceStatus.STOPPED),
    ],
)
async def test_the_lease_of_a_fenced_epoch_is_not_renewed(
    store: Store, clock: FakeClock, epoch: int, status: WorkspaceStatus
) -> None:
    idle = await leased(store)
    await set_status(store, idle.id, status)
    clock.advance(20)
    found, _ = await renew(store, idle.id, epoch)
    assert found == replace(idle, status=status)
    assert await store.get_workspace(idle.id) == found


async def test_wanted_pods_are_listed_by_page(store: Store) -> None:
    idles = sorted([workspace() for _ in range(5)], key=lambda each: each.id)
    for each in idles:
        await store.create_workspace(each)
    await store.create_workspace(workspace(WorkspaceStatus.STOPPED))
    assert await store.list_wanted_pods("", 2) == idles[:2]
    assert await store.list_wanted_pods(idles[1].id, 2) == idles[2:4]
    assert await store.list_wanted_pods(idles[3].id, 2) == idles[4:]


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_unsettled_workspaces_are_listed(store: Store, status: WorkspaceStatus) -> None:
    placed, unplaced = replace(workspace(status), run_id="run_1"), workspace(status)
    for each in (placed, unplaced):
        await store.create_workspace(each)
    is_moving = status in (
        WorkspaceStatus.PROVISIONING,
        WorkspaceStatus.STOPPING,
        WorkspaceStatus.DELETING,
    )
    has_pod_to_end = status is WorkspaceStatus.SUSPENDED
    listed = [placed] * (is_moving or has_pod_to_end) + [unplaced] * is_moving
    assert await unsettled(store) == sorted(listed, key=lambda each: each.id)


@pytest.mark.parametrize("changes", [{"task_unnamed_since": NOW}, {"agent_breach": "why"}])
async def test_a_workspace_whose_agent_strays_is_unsettled(
    store: Store, changes: dict[str, Any]
) -> None:
    busy, _ = await with_task(store)
    assert await due(store, Kind.OVERDUE, now=LATE) == []
    change = await store.transition(
        busy.id,
        lambda locked: replace(unchanged(locked), workspace=replace(locked.workspace, **changes)),
    )
    assert change is not None
    (found,) = await due(store, Kind.OVERDUE, now=LATE)
    assert found.workspace == change.workspace


@pytest.mark.parametrize("status", WorkspaceStatus)
async def test_leases_that_have_run_out_are_listed(
    store: Store, clock: FakeClock, status: WorkspaceStatus
) -> None:
    first, second = await leased(store), await leased(store)
    await store.create_workspace(workspace())
    await set_status(store, first.id, status)
    clock.advance(LEASE_SECONDS)
    await lease(store, second.id)
    assert await due(store, Kind.LEASE, now=clock()) == []
    wants_pod = status in WANTS_POD
    assert await store.lease_seconds_left() == (0 if wants_pod else LEASE_SECONDS)
    clock.advance(1)
    expired = [each.workspace for each in await due(store, Kind.LEASE, now=clock())]
    assert expired == ([replace(first, status=status)] if wants_pod else [])
    assert await store.lease_seconds_left() == (-1 if wants_pod else LEASE_SECONDS - 1)
    assert await store.lease_seconds_left(first.id) == -1
    assert await store.lease_seconds_left(second.id) == LEASE_SECONDS - 1
