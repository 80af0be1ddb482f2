"""What the controller reads at a scan, and when."""

from dataclasses import replace
from datetime import timedelta

import pytest

from evershell.core.bounds import FORCE_MARGIN
from evershell.core.change import Change, unchanged
from evershell.core.errors import UnavailableError
from evershell.core.task import TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet import due
from evershell.fleet.due import SWEEP_SECONDS, Due, Overdue, Sweep
from tests.support.fleet import BOUNDS, Fleet
from tests.support.waiting import settle
from tests.support.world import NOW, World

IDLE, FAILED = WorkspaceStatus.IDLE, WorkspaceStatus.FAILED


class Monotonic:
    """A monotonic clock that moves with the clock of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self) -> float:
        return (self._world.clock.now - NOW).total_seconds()


@pytest.fixture
def world() -> World:
    return World()


def scans_of(world: World) -> Due:
    overdue = Overdue(BOUNDS, world.clock, NOW - timedelta(hours=1))
    return Due(world.store, overdue, BOUNDS.lease_seconds, Monotonic(world))


async def lease(world: World, workspace: Workspace, seconds: float) -> None:
    await world.change(
        workspace.id, lambda locked: replace(unchanged(locked), lease_seconds=seconds)
    )


def reads(world: World) -> list[float]:
    """Notes when the leases are read, in seconds since the start."""
    noted: list[float] = []
    read = world.store.lease_seconds_left

    async def note(workspace_id: str | None = None) -> float | None:
        noted.append(Monotonic(world)())
        return await read(workspace_id)

    world.store.lease_seconds_left = note  # type: ignore[method-assign]
    return noted


async def overdue_ids(scans: Due) -> list[str]:
    return [each.id for each in (await scans.read()).overdue]


async def test_an_idle_workspace_is_not_due(world: World) -> None:
    await lease(world, await world.add(), 6)
    found = await scans_of(world).read()
    assert (found.overdue, found.unsettled, found.cancellations) == ([], [], [])


async def test_leases_are_read_when_the_first_one_can_run_out(world: World) -> None:
    first, second = await world.add(), await world.add()
    await lease(world, first, 3)
    await lease(world, second, 5)
    read_at, scans = reads(world), scans_of(world)
    found: dict[float, list[str]] = {}
    for _ in range(14):
        found[Monotonic(world)()] = await overdue_ids(scans)
        world.clock.advance(0.5)
    # Once the first has run out, they are read at every scan until it has ended.
    assert read_at == [0, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5]
    assert found[3] == [] and found[3.5] == [first.id]
    assert found[5.5] == [first.id, second.id]


async def test_a_renewed_lease_is_read_again_when_it_can_run_out(world: World) -> None:
    idle = await world.add()
    await lease(world, idle, 4)
    read_at, scans = reads(world), scans_of(world)
    for _ in range(20):
        assert await overdue_ids(scans) == []
        await world.store.renew_lease(idle.id, 1, 6)
        world.clock.advance(1)
    assert read_at == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_lease_that_begins_after_the_read_is_found_when_it_runs_out(
    world: World, others: int
) -> None:
    """A lease that is longer than that of this controller does not postpone the next read."""
    for _ in range(others):
        await lease(world, await world.add(), 1_000)
    scans, late = scans_of(world), await world.add()
    assert await overdue_ids(scans) == []
    await lease(world, late, BOUNDS.lease_seconds)
    for _ in range(6):
        world.clock.advance(1)
        assert await overdue_ids(scans) == []
    world.clock.advance(1)
    assert await overdue_ids(scans) == [late.id]


async def test_each_bound_is_found_at_the_next_scan(world: World) -> None:
    """Without a notification, and without a sweep."""
    forced, running = await world.add_busy()
    await world.cancel(forced.id, force_after_seconds=1)
    unnamed, _ = await world.add_busy()
    await world.change(
        unnamed.id,
        lambda locked: Change(replace(locked.workspace, task_unnamed_since=NOW), locked.task),
    )
    starting = await world.add(WorkspaceStatus.PROVISIONING)
    scans, found = scans_of(world), {}
    for seconds in (0, 3.1, 6.1, 30, 30.1):
        world.clock.now = NOW + timedelta(seconds=seconds)
        found[seconds] = set(await overdue_ids(scans))
    assert found[0] == set()
    assert found[3.1] == {forced.id} and FORCE_MARGIN.seconds == 2
    assert found[6.1] == {forced.id, unnamed.id}
    assert found[30] == {forced.id, unnamed.id}
    assert found[30.1] == {forced.id, unnamed.id, starting.id}
    read = await scans.read()
    assert read.unsettled == []
    assert [task.id for _, task in read.cancellations] == [running.id]


async def test_the_first_sweep_reads_everything_and_later_ones_a_page_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "PAGE_SIZE", 2)
    ids = sorted([(await world.add()).id for _ in range(5)])
    await world.add(FAILED)
    sweep, seen = Sweep(world.store, Monotonic(world)), []

    async def scan() -> list[str]:
        return [each.id async for page in sweep.due_pages() for each in page]

    assert await scan() == ids
    for _ in range(2 * int(SWEEP_SECONDS)):
        world.clock.advance(1)
        seen.append(await scan())
    read = {second: page for second, page in enumerate(seen, 1) if page}
    assert read == {
        20: ids[:2], 40: ids[2:4], 60: ids[4:], 80: ids[:2], 100: ids[2:4], 120: ids[4:]
    }  # fmt: skip


async def test_a_sweep_continues_after_an_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "PAGE_SIZE", 2)
    ids = sorted([(await world.add()).id for _ in range(5)])
    sweep, seen = Sweep(world.store, Monotonic(world)), []
    with pytest.raises(UnavailableError):
        async for page in sweep.due_pages():
            seen += [each.id for each in page]
            world.store.unavailable = True
    world.store.unavailable = False
    async for page in sweep.due_pages():
        seen += [each.id for each in page]
    assert seen == ids


async def test_an_agent_that_dies_during_an_outage_is_found_at_the_next_scan() -> None:
    fleet = Fleet()
    busy, running = await fleet.add_busy()
    async with fleet.running():
        fleet.world.store.unavailable = True
        fleet.pods.kill(busy)
        await settle()
        fleet.world.store.unavailable = False
        fleet.changes.queue.put_nowait(set())
        await fleet.next_scan()
        assert (await fleet.world.workspace(busy.id)).status is FAILED
        assert (await fleet.world.task(busy.id, running.id)).status is TaskStatus.FAILED


async def test_a_change_during_a_step_is_reconciled_at_the_next_scan() -> None:
    """The agent dies while the controller checks whether it is overdue."""
    fleet = Fleet()
    idle = await fleet.add(IDLE, lease_expires_at=NOW)
    fleet.world.clock.advance(1)
    get_workspace = fleet.world.store.get_workspace

    async def renew_and_die(workspace_id: str, org_id: str | None = None) -> Workspace | None:
        fleet.world.store.get_workspace = get_workspace  # type: ignore[method-assign]
        await fleet.world.store.renew_lease(idle.id, 1, 60)
        read = await get_workspace(workspace_id, org_id)
        fleet.pods.kill(idle)
        await settle()
        return read

    fleet.world.store.get_workspace = renew_and_die  # type: ignore[method-assign]
    async with fleet.running():
        await settle()
        assert (await fleet.world.workspace(idle.id)).status is IDLE
        await fleet.next_scan()
        assert (await fleet.world.workspace(idle.id)).status is FAILED


async def test_a_step_that_fails_is_repeated_at_the_next_scan() -> None:
    fleet = Fleet()
    made = await fleet.add(IDLE, run_id="run_0", pod=False)
    end, failures = fleet.pods.end, [OSError("injected")]

    async def fail_once(workspace: Workspace, grace_seconds: float) -> bool:
        if failures:
            raise failures.pop()
        return await end(workspace, grace_seconds)

    fleet.pods.end = fail_once  # type: ignore[method-assign]
    async with fleet.running():
        assert (await fleet.world.workspace(made.id)).status is IDLE
        await fleet.next_scan()
        assert (await fleet.world.workspace(made.id)).status is WorkspaceStatus.PROVISIONING
