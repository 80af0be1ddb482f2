"""Redelivery repeats a cancellation until the agent acknowledges it or the task ends."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.ports import UNDELIVERED
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace
from evershell.fleet import redelivery
from evershell.fleet.redelivery import FIRST_AFTER, Redelivery
from tests.support.fleet import Fleet
from tests.support.waiting import settle
from tests.support.world import NOW, World, intent

LATER = NOW + timedelta(seconds=1) + FIRST_AFTER


@pytest.fixture(autouse=True)
def without_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "backoff", lambda *_, **__: 0.0)


@pytest.fixture
def world() -> World:
    return World()


async def cancelled(world: World, requested: CancelIntent | None = None) -> Workspace:
    busy, _ = await world.add_busy()
    await world.change(
        busy.id, lambda locked: task_lifecycle.request_cancel(locked, requested or intent())
    )
    return busy


async def follow(world: World, deliveries: Redelivery, after: timedelta = timedelta()) -> None:
    deliveries.follow(await world.store.list_cancellations(), LATER + after)
    await settle()


async def test_an_acknowledged_cancellation_is_not_delivered_again(world: World) -> None:
    await cancelled(world)
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    await follow(world, deliveries)
    assert len(world.agents.cancelled) == 1


async def test_redelivery_waits_for_the_call_that_recorded_the_cancellation(world: World) -> None:
    await cancelled(world)
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries, -timedelta(milliseconds=1))
    assert world.agents.cancelled == []


async def test_a_cancellation_is_delivered_at_its_force_deadline_at_the_latest(
    world: World,
) -> None:
    """A later delivery would reach the agent after the deadline."""
    force_at = NOW + timedelta(seconds=1)
    await cancelled(world, replace(intent(), force_at=force_at))
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries, force_at - LATER - timedelta(milliseconds=1))
    assert world.agents.cancelled == []
    await follow(world, deliveries, force_at - LATER)
    assert len(world.agents.cancelled) == 1


@pytest.mark.parametrize("answer", ["unreachable", "unknown"])
async def test_delivery_is_repeated_until_the_agent_has_the_task(world: World, answer: str) -> None:
    await cancelled(world)
    world.agents.reachable, world.agents.known = answer != "unreachable", answer != "unknown"
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    assert len(world.agents.cancelled) > 1
    world.agents.reachable = world.agents.known = True
    await settle()
    attempts = len(world.agents.cancelled)
    await follow(world, deliveries)
    assert len(world.agents.cancelled) == attempts


async def test_delivery_stops_when_the_task_has_ended(world: World) -> None:
    busy = await cancelled(world)
    world.agents.reachable = False
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    await world.change(
        busy.id,
        lambda locked: workspace_lifecycle.lose_agent(
            locked, 1, "its agent died", world.clock(), work_stopped=True
        ),
    )
    await follow(world, deliveries)
    attempts = len(world.agents.cancelled)
    await settle()
    assert len(world.agents.cancelled) == attempts


async def test_an_earlier_deadline_is_delivered(world: World) -> None:
    delivered: list[datetime | None] = []

    async def note(_: Workspace, task: Task) -> None:
        assert task.cancel is not None
        delivered.append(task.cancel.force_at)

    busy = await cancelled(world)
    world.agents.meanwhile = note
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    force_at = NOW + timedelta(seconds=9)
    await world.change(
        busy.id, lambda locked: task_lifecycle.request_cancel(locked, intent(force_at=force_at))
    )
    await follow(world, deliveries)
    assert delivered == [None, force_at]


@pytest.mark.parametrize("kind", [RuntimeError, asyncio.CancelledError])
async def test_an_error_of_one_delivery_does_not_affect_the_others(
    world: World, kind: type[BaseException]
) -> None:
    delivered: list[str] = []
    error: BaseException | None = kind("failed")

    async def fail(workspace: Workspace, _: Task) -> None:
        if workspace.id == first.id and error is not None:
            raise error
        delivered.append(workspace.id)

    first, second = await cancelled(world), await cancelled(world)
    world.agents.meanwhile = fail
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    assert delivered == [second.id]
    # The failed delivery is retried at the next scan.
    error = None
    await follow(world, deliveries)
    assert delivered == [second.id, first.id]


async def test_only_the_leader_delivers() -> None:
    fleet = Fleet()
    await fleet.add_busy(cancelled=True)
    fleet.world.clock.now = LATER
    fleet.world.agents.reachable = False
    async with fleet.running():
        await settle()
        assert fleet.world.agents.cancelled
    attempts = len(fleet.world.agents.cancelled)
    await settle()
    assert len(fleet.world.agents.cancelled) == attempts


async def test_what_nobody_has_signalled_is_delivered_at_once(world: World) -> None:
    await cancelled(world)
    deliveries = Redelivery(world.agents)
    world.agents.reachable = False
    deliveries.follow(await world.store.list_cancellations(), NOW, at_once=True)
    await settle()
    attempts = len(world.agents.cancelled)
    assert attempts
    # A scan before FIRST_AFTER does not end the delivery.
    await follow(world, deliveries, -timedelta(milliseconds=1))
    assert len(world.agents.cancelled) > attempts
    deliveries.stop()


async def test_a_bounded_number_of_agents_is_signalled_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redelivery, "_AT_ONCE", 3)
    for _ in range(8):
        await cancelled(world)
    silent = asyncio.Event()

    async def wait(workspace: Workspace, task: Task) -> None:
        await silent.wait()

    world.agents.meanwhile = wait
    deliveries = Redelivery(world.agents)
    await follow(world, deliveries)
    assert len(world.agents.cancelled) == 3
    silent.set()
    await settle()
    assert len(set(world.agents.cancelled)) == 8


async def test_the_controller_signals_a_batch_before_the_next_scan() -> None:
    fleet = Fleet()
    async with fleet.running():
        running = [await fleet.add_busy(cancelled=True) for _ in range(3)]
        assert fleet.world.agents.cancelled == []
        fleet.changes.queue.put_nowait({UNDELIVERED})
        await settle()
        assert sorted(fleet.world.agents.cancelled) == sorted(task.id for _, task in running)
