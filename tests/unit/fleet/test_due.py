"""What the controller reads at a scan, and that it ends live agents that let a deadline pass."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest

from evershell.core import workspace_lifecycle
from evershell.core.bounds import CANCEL_MARGIN, FORCE_MARGIN, FORCE_RECOVERY_MARGIN
from evershell.core.change import Change, unchanged
from evershell.core.due import DueWork, Kind
from evershell.core.errors import UnavailableError
from evershell.core.task import Phase, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet import due
from evershell.fleet.due import SWEEP_SECONDS, DueReader, Overdue, Sweep
from tests.support.fleet import BOUNDS, Fleet
from tests.support.waiting import settle
from tests.support.world import NOW, World

IDLE, FAILED = WorkspaceStatus.IDLE, WorkspaceStatus.FAILED
ENDS = (Kind.OVERDUE, Kind.LEASE)


class Monotonic:
    """A monotonic clock that moves with the clock of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self) -> float:
        return (self._world.clock.now - NOW).total_seconds()


@pytest.fixture
def world() -> World:
    return World()


def scans_of(world: World, overdue: Overdue | None = None) -> DueReader:
    overdue = overdue or Overdue(BOUNDS, world.clock, NOW - timedelta(hours=1))
    return DueReader(world.store, world.clock, BOUNDS, overdue, Monotonic(world))


async def lease(world: World, workspace: Workspace, seconds: float) -> None:
    await world.change(
        workspace.id, lambda locked: replace(unchanged(locked), lease_seconds=seconds)
    )


def reads(world: World) -> list[float]:
    """Records when the leases are read, in seconds since the start."""
    noted: list[float] = []
    read = world.store.lease_seconds_left

    async def note(workspace_id: str | None = None) -> float | None:
        noted.append(Monotonic(world)())
        return await read(workspace_id)

    world.store.lease_seconds_left = note  # type: ignore[method-assign]
    return noted


async def overdue_ids(scans: DueReader) -> list[str]:
    rows = (await scans.read(ENDS)).rows
    return [each.workspace.id for kind in ENDS for each in rows.get(kind, ())]


async def test_an_idle_workspace_is_not_due(world: World) -> None:
    await lease(world, await world.add(), 6)
    found = await scans_of(world).read([*Kind])
    assert not any(found.rows.values())


async def test_leases_are_read_when_the_first_one_can_run_out(world: World) -> None:
    first, second = await world.add(), await world.add()
    await lease(world, first, 3)
    await lease(world, second, 5)
    read_at, scans = reads(world), scans_of(world)
    found: dict[float, list[str]] = {}
    for _ in range(14):
        found[Monotonic(world)()] = await overdue_ids(scans)
        world.clock.advance(0.5)
    # Once the first lease has run out, the leases are read at every scan until its pod has ended.
    assert read_at == [0, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5]
    assert found[3] == [] and found[3.5] == [first.id]
    assert found[5.5] == [first.id, second.id]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_lease_that_begins_after_the_read_is_found_when_it_runs_out(
    world: World, others: int
) -> None:
    """The leases are read again after `lease_seconds`, even if all known leases last longer."""
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
    """The scan needs neither a notification nor a sweep."""
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
    cancelled = (await scans.read([Kind.CANCELLATION])).rows[Kind.CANCELLATION]
    assert [each.task and each.task.id for each in cancelled] == [running.id]


async def test_rows_that_stay_due_hide_no_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "PAGE_SIZE", 2)
    ids = sorted([(await world.add(WorkspaceStatus.STOPPING)).id for _ in range(5)])
    scans, pages = scans_of(world), []
    for _ in range(4):
        rows = (await scans.read([Kind.STOP])).rows[Kind.STOP]
        pages.append([each.workspace.id for each in rows])
    assert pages == [ids[:2], ids[2:4], ids[4:], ids[:2]]


async def test_a_round_of_leases_ends_if_no_lease_is_over_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a scan would never end."""
    monkeypatch.setattr(due, "PAGE_SIZE", 2)
    for _ in range(2):
        await lease(world, await world.add(), 1)
    scans = scans_of(world)
    world.clock.advance(2)
    assert len((await scans.read([Kind.LEASE])).rows[Kind.LEASE]) == 2
    assert not scans.is_round_over(Kind.LEASE)
    for workspace in list(world.store.workspaces.values()):
        await lease(world, workspace, 60)
    await scans.read([Kind.LEASE])
    assert scans.is_round_over(Kind.LEASE)


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


async def test_an_overdue_force_deadline_ends_the_pod_of_a_live_agent(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=1)
    fleet.world.clock.now = NOW + timedelta(seconds=1) + FORCE_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, suspended = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.forced, ended.reason) == (
        TaskStatus.CANCELLED,
        True,
        "its agent did not interrupt the task in time",
    )
    assert (suspended.status, suspended.run_id) == (WorkspaceStatus.SUSPENDED, None)
    assert fleet.pods.calls == ["end 0"]


async def test_a_lease_that_is_over_suspends_the_workspace_of_a_task_whose_force_is_overdue(
    fleet: Fleet,
) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW)
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(hours=1)
    await fleet.scan()
    suspended = await fleet.world.workspace(busy.id)
    assert (suspended.status, suspended.status_reason) == (
        WorkspaceStatus.SUSPENDED,
        "its agent did not renew its lease in time",
    )


async def test_after_an_outage_an_agent_has_time_to_commit(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    fleet.last_outage_at = fleet.world.clock.now - FORCE_RECOVERY_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_failed_scan_counts_as_an_outage(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=7)
    read = fleet.world.store.due

    async def fail_once(*_: Any) -> DueWork:
        fleet.world.store.due = read  # type: ignore[method-assign]
        raise UnavailableError("frozen")

    fleet.world.store.due = fail_once  # type: ignore[method-assign, assignment]
    async with fleet.running():
        fleet.changes.queue.put_nowait(set())
        await settle()
    assert fleet.pods.calls == []


@pytest.mark.parametrize("silences", [[0.1, 4.0], []])
async def test_while_a_worker_is_silent_a_deadline_waits_for_a_lease_at_most(
    fleet: Fleet, silences: list[float]
) -> None:
    """Agents of a silent worker may be unable to commit, so they get the time of one lease."""
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.store.silences = silences
    last = FORCE_MARGIN.seconds + BOUNDS.lease_seconds
    for seconds in (2.1, 4, 7, last):
        fleet.world.clock.now = NOW + timedelta(seconds=seconds)
        await fleet.scan()
        assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_worker_that_fell_silent_since_the_scan_is_noticed(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + timedelta(seconds=2.1)
    read = [[1.2], [1.3]]

    async def silences() -> list[float]:
        return read.pop(0)

    fleet.world.store.worker_silences = silences  # type: ignore[method-assign]
    await fleet.scan()
    assert (fleet.pods.calls, read) == ([], [])


async def test_a_database_that_is_slow_counts_as_an_outage(world: World) -> None:
    overdue = Overdue(BOUNDS, world.clock, NOW - timedelta(hours=1))
    scans = scans_of(world, overdue)
    await scans.read([*Kind])
    assert overdue.last_outage_at == NOW - timedelta(hours=1)

    async def slow() -> list[float]:
        world.clock.advance(0.3)
        return [0.0]

    world.store.worker_silences = slow  # type: ignore[method-assign]
    await scans.read([*Kind])
    assert overdue.last_outage_at == world.clock.now


async def test_a_scan_that_is_late_counts_as_an_outage(fleet: Fleet) -> None:
    """The whole machine stood still, including the agents."""
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    async with fleet.running():
        fleet.world.clock.now = NOW + timedelta(seconds=4)
        with patch.object(time, "monotonic", return_value=time.monotonic() + 4):
            fleet.changes.queue.put_nowait(set())
            await settle()
        assert fleet.pods.calls == []
        fleet.world.clock.advance(FORCE_RECOVERY_MARGIN.seconds + 0.1)
        fleet.scans = 4
        await fleet.next_scan()
        assert fleet.pods.calls == ["end 0"]


async def test_what_the_controller_does_itself_is_no_outage(fleet: Fleet) -> None:
    """The controller takes four seconds to follow a change."""
    other = await fleet.add(WorkspaceStatus.IDLE)
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    monotonic = time.monotonic
    get_workspace = fleet.world.store.get_workspace
    took_seconds = [0.0]

    async def slow(workspace_id: str, org_id: str | None = None) -> Workspace | None:
        took_seconds[0] = 4.0
        return await get_workspace(workspace_id, org_id)

    async with fleet.running():
        fleet.world.clock.now = NOW + timedelta(seconds=4)
        fleet.world.store.get_workspace = slow  # type: ignore[method-assign]
        with patch.object(time, "monotonic", lambda: monotonic() + took_seconds[0]):
            fleet.changes.queue.put_nowait({other.id})
            await settle()
        assert fleet.pods.calls == ["end 0"]


async def test_repeated_outages_postpone_a_deadline_by_one_lease_at_most(fleet: Fleet) -> None:
    busy, _ = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.now = NOW + FORCE_MARGIN + timedelta(seconds=BOUNDS.lease_seconds + 0.1)
    fleet.last_outage_at = fleet.world.clock.now
    await fleet.scan()
    assert fleet.pods.calls == ["end 0"]


async def test_a_cancelled_task_that_exceeds_an_iteration_ends_with_its_pod(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy(lease_expires_at=NOW + timedelta(hours=1))
    await fleet.world.cancel(busy.id)
    limits = timedelta(seconds=BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds)
    fleet.world.clock.now = NOW + limits + CANCEL_MARGIN
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended = await fleet.world.task(busy.id, running.id)
    assert (ended.status, ended.forced) == (TaskStatus.CANCELLED, False)
    assert (
        ended.reason == "its agent did not end the cancelled task within the limits of an iteration"
    )


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_a_task_that_its_heartbeats_do_not_name_ends_with_its_pod(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)

    async def beat(task_id: str) -> None:
        await fleet.world.change(
            busy.id,
            lambda locked: workspace_lifecycle.heartbeat(
                locked, 1, task_id, Phase.NONE, 60, fleet.world.clock()
            ),
        )

    await beat("")
    fleet.world.clock.advance(BOUNDS.lease_seconds - 1)
    await beat(running.id)
    await beat("task_other")
    fleet.world.clock.advance(BOUNDS.lease_seconds)
    await beat("")
    await fleet.scan()
    assert fleet.pods.calls == []
    fleet.world.clock.advance(0.1)
    await fleet.scan()
    ended, failed = (
        await fleet.world.task(busy.id, running.id),
        await fleet.world.workspace(busy.id),
    )
    assert (ended.status, ended.reason) == (
        status,
        "its agent did not work on the task that it was given",
    )
    assert (failed.status, failed.task_unnamed_since) == (WorkspaceStatus.FAILED, None)


@pytest.mark.parametrize(
    ("cancelled", "status"), [(False, TaskStatus.FAILED), (True, TaskStatus.CANCELLED)]
)
async def test_the_pod_of_an_agent_that_broke_a_rule_ends_and_then_its_task(
    fleet: Fleet, cancelled: bool, status: TaskStatus
) -> None:
    busy, running = await fleet.add_busy(cancelled=cancelled)
    await fleet.world.change(
        busy.id, lambda locked: workspace_lifecycle.record_breach(locked, 1, "its agent lied")
    )
    await fleet.scan()
    ended = await fleet.world.task(busy.id, running.id)
    failed = await fleet.world.workspace(busy.id)
    assert (ended.status, ended.reason) == (status, "its agent lied")
    assert (failed.status, fleet.pods.calls) == (WorkspaceStatus.FAILED, ["end 0"])


async def test_a_pod_whose_task_ended_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    busy, running = await fleet.add_busy()
    await fleet.world.cancel(busy.id, force_after_seconds=0)
    fleet.world.clock.advance(3)
    read = fleet.world.store.due

    async def read_then_end(*arguments: Any) -> DueWork:
        found = await read(*arguments)
        assert found.rows[Kind.OVERDUE]
        await fleet.world.end(busy.id, running.id)
        return found

    fleet.world.store.due = read_then_end  # type: ignore[method-assign, assignment]
    await fleet.scan()
    assert ((await fleet.world.workspace(busy.id)).status, fleet.pods.calls) == (
        WorkspaceStatus.IDLE,
        [],
    )


async def test_a_pod_whose_lease_was_renewed_during_the_scan_is_not_ended(fleet: Fleet) -> None:
    """A controller that was frozen continues with outdated rows."""
    idle = await fleet.add(WorkspaceStatus.IDLE, lease_expires_at=NOW)
    fleet.world.clock.advance(3)
    read = fleet.world.store.due

    async def read_then_renew(*arguments: Any) -> DueWork:
        found = await read(*arguments)
        assert found.rows[Kind.LEASE]
        await fleet.world.store.renew_lease(idle.id, 1, 60)
        return found

    fleet.world.store.due = read_then_renew  # type: ignore[method-assign, assignment]
    await fleet.scan()
    assert ((await fleet.world.workspace(idle.id)).status, fleet.pods.calls) == (
        WorkspaceStatus.IDLE,
        [],
    )
