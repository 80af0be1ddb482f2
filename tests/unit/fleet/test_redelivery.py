"""Redelivery repeats a cancellation until the agent acknowledges it or the task ends."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.due import Kind
from evershell.core.ports import UNDELIVERED
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace
from evershell.fleet import work
from evershell.fleet.redelivery import FIRST_AFTER, Redelivery
from tests.support.fleet import Fleet
from tests.support.store.due import due
from tests.support.waiting import settle
from tests.support.world import NOW, FakeClock, World, intent

LATER = NOW + timedelta(seconds=1) + FIRST_AFTER
JUST = timedelta(milliseconds=1)


class Deliveries:
    """Delivers the cancellations that are due, as the controller does."""

    def __init__(self) -> None:
        self.world = World()
        self._clock = FakeClock()
        self._redelivery = Redelivery(self.world.agents, self._clock)

    @property
    def attempts(self) -> int:
        return len(self.world.agents.cancelled)

    async def scan(self, now: datetime = LATER, *, at_once: bool = False) -> None:
        self._clock.now = now
        found = await due(self.world.store, Kind.CANCELLATION)
        for each in self._redelivery.due(found, at_once=at_once, is_last=True):
            await self._redelivery.deliver(each)


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


async def cancelled(world: World, requested: CancelIntent | None = None) -> Workspace:
    busy, _ = await world.add_busy()
    await world.change(
        busy.id, lambda locked: task_lifecycle.request_cancel(locked, requested or intent())
    )
    return busy


async def test_an_acknowledged_cancellation_is_not_delivered_again(deliveries: Deliveries) -> None:
    await cancelled(deliveries.world)
    for seconds in range(20):
        await deliveries.scan(LATER + timedelta(seconds=seconds))
    assert deliveries.attempts == 1


async def test_redelivery_waits_for_the_call_that_recorded_the_cancellation(
    deliveries: Deliveries,
) -> None:
    await cancelled(deliveries.world)
    await deliveries.scan(LATER - JUST)
    assert deliveries.attempts == 0


async def test_a_cancellation_is_delivered_at_its_force_deadline_at_the_latest(
    deliveries: Deliveries,
) -> None:
    """A later delivery would reach the agent after the deadline."""
    force_at = NOW + timedelta(seconds=1)
    await cancelled(deliveries.world, replace(intent(), force_at=force_at))
    await deliveries.scan(force_at - JUST)
    assert deliveries.attempts == 0
    await deliveries.scan(force_at)
    assert deliveries.attempts == 1


@pytest.mark.parametrize("answer", ["unreachable", "unknown"])
async def test_delivery_is_repeated_until_the_agent_has_the_task(
    deliveries: Deliveries, answer: str
) -> None:
    await cancelled(deliveries.world)
    agents = deliveries.world.agents
    agents.reachable, agents.known = answer != "unreachable", answer != "unknown"
    attempted_at = []
    for seconds in range(20):
        before = deliveries.attempts
        await deliveries.scan(LATER + timedelta(seconds=seconds))
        if deliveries.attempts > before:
            attempted_at.append(seconds)
        agents.reachable = agents.known = seconds >= 10
    assert attempted_at == [0, 1, 2, 4, 8, 13]


async def test_delivery_stops_when_the_task_has_ended(deliveries: Deliveries) -> None:
    world = deliveries.world
    busy = await cancelled(world)
    world.agents.reachable = False
    await deliveries.scan()
    await world.change(
        busy.id,
        lambda locked: workspace_lifecycle.lose_agent(
            locked, 1, "its agent died", world.clock(), work_stopped=True
        ),
    )
    await deliveries.scan(LATER + timedelta(seconds=9))
    assert deliveries.attempts == 1
    # Otherwise, the memory of a leader would grow with each cancellation.
    assert not deliveries._redelivery._deliveries


async def test_an_earlier_deadline_is_delivered(deliveries: Deliveries) -> None:
    delivered: list[datetime | None] = []

    async def note(_: Workspace, task: Task) -> None:
        assert task.cancel is not None
        delivered.append(task.cancel.force_at)

    world = deliveries.world
    busy = await cancelled(world)
    world.agents.meanwhile = note
    await deliveries.scan()
    force_at = NOW + timedelta(seconds=9)
    await world.change(
        busy.id, lambda locked: task_lifecycle.request_cancel(locked, intent(force_at=force_at))
    )
    await deliveries.scan()
    assert delivered == [None, force_at]


async def test_what_nobody_has_signalled_is_delivered_at_once(deliveries: Deliveries) -> None:
    await cancelled(deliveries.world)
    deliveries.world.agents.reachable = False
    await deliveries.scan(NOW, at_once=True)
    assert deliveries.attempts == 1
    # The delivery is repeated before FIRST_AFTER has passed.
    await deliveries.scan(NOW + timedelta(seconds=1))
    assert deliveries.attempts == 2


async def fleet_at(now: datetime, cancellations: int) -> tuple[Fleet, list[str]]:
    """A fleet with `cancellations` cancelled tasks, and the ids of their workspaces."""
    fleet = Fleet()
    busy = [await fleet.add_busy(cancelled=True) for _ in range(cancellations)]
    fleet.world.clock.now = now
    return fleet, [workspace.id for workspace, _ in busy]


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_error_of_one_delivery_does_not_affect_the_others(
    kind: type[BaseException],
) -> None:
    fleet, (first, second) = await fleet_at(LATER, 2)
    delivered: list[str] = []
    error: BaseException | None = kind("failed")

    async def fail(workspace: Workspace, _: Task) -> None:
        if workspace.id == first and error is not None:
            raise error
        delivered.append(workspace.id)

    fleet.world.agents.meanwhile = fail
    async with fleet.running():
        assert delivered == [second]
        # The failed delivery is retried at the next scan.
        error = None
        await fleet.next_scan()
    assert delivered == [second, first]


async def test_only_the_leader_delivers() -> None:
    fleet, _ = await fleet_at(LATER, 1)
    fleet.world.agents.reachable = False
    async with fleet.running():
        assert fleet.world.agents.cancelled
    attempts = len(fleet.world.agents.cancelled)
    await settle()
    assert len(fleet.world.agents.cancelled) == attempts


async def test_a_bounded_number_of_agents_is_signalled_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "SIGNALS", 3)
    fleet, _ = await fleet_at(LATER, 8)
    silent = asyncio.Event()

    async def wait(workspace: Workspace, task: Task) -> None:
        await silent.wait()

    fleet.world.agents.meanwhile = wait
    async with fleet.running():
        await fleet.next_scan()
        assert len(fleet.world.agents.cancelled) == 3
        silent.set()
        await settle()
    assert len(set(fleet.world.agents.cancelled)) == 8


async def test_the_controller_signals_a_batch_before_the_next_scan() -> None:
    fleet = Fleet()
    async with fleet.running():
        running = [await fleet.add_busy(cancelled=True) for _ in range(3)]
        assert fleet.world.agents.cancelled == []
        fleet.changes.queue.put_nowait({UNDELIVERED})
        await settle()
        assert sorted(fleet.world.agents.cancelled) == sorted(task.id for _, task in running)
