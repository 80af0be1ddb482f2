"""A cancellation that waits for the end of its task, within the caller's deadline."""

import asyncio
from typing import Any

import pytest

from evershell.core import deadline
from evershell.core.cancel_task import MAX_WAIT_SECONDS, CancelResult, Outcome
from evershell.core.errors import Failure
from evershell.core.task import Task, TaskStatus
from evershell.core.workspace import Workspace
from tests.support.world import World

LIMIT_SECONDS = 10


async def waiting(world: World, workspace_id: str, **fields: Any) -> "asyncio.Task[CancelResult]":
    """Starts a cancellation and returns once it is recorded and waits for the task's end."""
    calling = asyncio.create_task(world.cancel(workspace_id, **fields))
    async with asyncio.timeout(LIMIT_SECONDS):
        while not world.subscriptions.has_subscribers(workspace_id):
            await asyncio.sleep(0)
    return calling


async def test_the_reply_waits_for_the_end_of_the_task(world: World) -> None:
    busy, running = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    assert not calling.done()
    await world.end(busy.id, running.id)
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, True)
    assert result.task is not None
    assert result.task.status is TaskStatus.CANCELLED


async def test_a_wait_that_times_out_replies_with_the_current_task(world: World) -> None:
    busy, _ = await world.add_busy()
    result = await world.cancel(busy.id, wait_seconds=0.01)
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)
    assert result.task is not None
    assert result.task.cancel is not None


async def test_a_wait_of_0_seconds_replies_at_once(world: World) -> None:
    busy, _ = await world.add_busy()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert not (await world.cancel(busy.id, wait_seconds=0)).saw_end


async def test_the_wait_ends_before_the_callers_deadline(world: World) -> None:
    busy, _ = await world.add_busy()
    deadline.begin(0.26)
    async with asyncio.timeout(LIMIT_SECONDS):
        assert not (await world.cancel(busy.id, wait_seconds=30)).saw_end


async def test_a_draining_server_ends_the_wait(world: World) -> None:
    busy, _ = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    world.subscriptions.drain()
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)


async def test_an_unreachable_agent_fails_the_call_at_once(world: World) -> None:
    busy, _ = await world.add_busy()
    world.agents.reachable = False
    async with asyncio.timeout(LIMIT_SECONDS):
        with pytest.raises(Failure) as raised:
            await world.cancel(busy.id, wait_seconds=30)
    assert raised.value.slug == "agent_unreachable"


@pytest.mark.parametrize("seconds", [-0.001, 86_401, float("nan")])
async def test_a_force_deadline_out_of_bounds_is_refused(world: World, seconds: float) -> None:
    with pytest.raises(Failure) as raised:
        await world.cancel("ws_1", force_after_seconds=seconds)
    assert set(raised.value.details["fields"]) == {"force_after"}


@pytest.mark.parametrize("seconds", [-0.5, MAX_WAIT_SECONDS + 0.5])
async def test_a_wait_out_of_bounds_is_refused(world: World, seconds: float) -> None:
    with pytest.raises(Failure) as raised:
        await world.cancel("ws_1", wait_seconds=seconds)
    assert raised.value.details["fields"] == {"wait": "must be 0 to 30 s"}


async def test_an_end_between_the_signal_and_the_wait_is_not_missed(world: World) -> None:
    busy, running = await world.add_busy()

    async def end(workspace: Workspace, task: Task) -> None:
        await world.end(busy.id, running.id)

    world.agents.meanwhile = end
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await world.cancel(busy.id, wait_seconds=30)
    assert result.saw_end


async def test_an_accepted_call_succeeds_though_the_database_goes_down_afterwards(
    world: World,
) -> None:
    busy, _ = await world.add_busy()

    async def go_away(workspace: Workspace, task: Task) -> None:
        world.store.unavailable = True

    world.agents.meanwhile, world.agents.known = go_away, False
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await world.cancel(busy.id, wait_seconds=0.01)
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)
    assert result.task is not None and result.task.cancel is not None
