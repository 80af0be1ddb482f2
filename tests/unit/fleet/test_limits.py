"""The controller cancels the tasks whose duration has reached its limit."""

from evershell.core import task_lifecycle
from evershell.core.task import Task, TaskLimits, TaskStarted, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fleet import BOUNDS, Fleet
from tests.support.waiting import settle
from tests.support.world import USER, task


async def limited(fleet: Fleet, **limits: float) -> tuple[Workspace, Task]:
    idle = await fleet.add(WorkspaceStatus.IDLE)
    new = task(idle.id, limits=TaskLimits(**limits))  # type: ignore[arg-type]
    world = fleet.world
    await world.change(idle.id, lambda locked: task_lifecycle.submit(locked, new, USER))
    await world.commit(idle.id, new.id, TaskStarted())
    return idle, new


async def test_a_task_is_cancelled_and_signalled_at_its_limit(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    other, unlimited = await fleet.add_busy()
    async with fleet.running():
        fleet.world.clock.advance(59)
        await fleet.next_scan()
        assert (await fleet.world.task(at.id, new.id)).cancel is None
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        cancel = (await fleet.world.task(at.id, new.id)).cancel
        assert cancel is not None and cancel.requested_by == "system:limit"
        assert fleet.world.agents.cancelled == [new.id]
        await fleet.next_scan()
        await settle()
    assert (await fleet.world.event_types(at.id)).count("task_cancel_requested") == 1
    assert (await fleet.world.task(other.id, unlimited.id)).cancel is None


async def test_the_next_leader_finds_what_was_reached_without_one(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    fleet.world.clock.advance(3600)
    await fleet.scan()
    assert (await fleet.world.task(at.id, new.id)).cancel is not None


async def test_the_task_of_a_frozen_agent_ends_cancelled(fleet: Fleet) -> None:
    """The bounds of a cancellation apply, as to that of a caller."""
    at, new = await limited(fleet, max_duration_seconds=1)
    fleet.world.agents.reachable = False
    async with fleet.running():
        fleet.world.clock.advance(1)
        await fleet.next_scan()
        fleet.world.clock.advance(BOUNDS.model_timeout_seconds + BOUNDS.tool_timeout_seconds + 3600)
        await fleet.next_scan()
        await settle()
    ended = await fleet.world.task(at.id, new.id)
    assert (ended.status, ended.reason) == (
        TaskStatus.CANCELLED,
        "its agent did not end the cancelled task within the limits of an iteration",
    )


async def test_an_outage_does_not_lose_a_limit(fleet: Fleet) -> None:
    at, new = await limited(fleet, max_duration_seconds=60)
    async with fleet.running():
        fleet.world.clock.advance(60)
        fleet.world.store.unavailable = True
        await fleet.next_scan()
        fleet.world.store.unavailable = False
        await fleet.next_scan()
    assert (await fleet.world.task(at.id, new.id)).cancel is not None
