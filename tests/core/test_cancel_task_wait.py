"""Wait for the end of a cancelled task: woken by it, and never longer than the caller has time."""

import asyncio
from typing import Any

import pytest

from server.core import deadline
from server.core.cancel_task import MAX_WAIT_SECONDS, CancelResult, Outcome
from server.core.errors import Failure
from server.core.task import Task, TaskStatus
from server.core.workspace import Workspace
from tests.support.world import World

LIMIT_SECONDS = 10


async def waiting(world: World, workspace_id: str, **fields: Any) -> "asyncio.Task[CancelResult]":
    """A cancellation that has been recorded and now waits."""
    calling = asyncio.create_task(world.cancel(workspace_id, **fields))
    async with asyncio.timeout(LIMIT_SECONDS):
        while not world.wakeups.is_awaited(workspace_id):
            await asyncio.sleep(0)
    return calling


async def test_the_end_is_what_the_answer_waits_for(world: World) -> None:
    busy, running = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    assert not calling.done()
    await world.end(busy.id, running.id)
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, True)
    assert result.task is not None
    assert result.task.status is TaskStatus.CANCELLED


async def test_a_wait_that_is_over_answers_with_the_task_as_it_stands(world: World) -> None:
    busy, _ = await world.add_busy()
    result = await world.cancel(busy.id, wait_seconds=0.01)
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)
    assert result.task is not None
    assert result.task.cancel is not None


async def test_a_wait_of_nothing_does_not_wait(world: World) -> None:
    busy, _ = await world.add_busy()
    async with asyncio.timeout(LIMIT_SECONDS):
        assert not (await world.cancel(busy.id, wait_seconds=0)).saw_end


async def test_the_callers_own_deadline_ends_the_wait_before_it_passes(world: World) -> None:
    busy, _ = await world.add_busy()
    deadline.begin(0.26)
    async with asyncio.timeout(LIMIT_SECONDS):
        assert not (await world.cancel(busy.id, wait_seconds=30)).saw_end


async def test_a_server_that_drains_answers_early(world: World) -> None:
    busy, _ = await world.add_busy()
    calling = await waiting(world, busy.id, wait_seconds=30)
    world.wakeups.drain()
    async with asyncio.timeout(LIMIT_SECONDS):
        result = await calling
    assert (result.outcome, result.saw_end) == (Outcome.ACCEPTED, False)


async def test_an_agent_that_does_not_answer_is_told_at_once(world: World) -> None:
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


async def test_a_database_that_goes_away_after_the_record_does_not_turn_an_accepted_call_into_a_failure(
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
