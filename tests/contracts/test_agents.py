"""What every Agents does: over gRPC, measured, and in the fakes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from server.core.errors import AgentUnreachableError
from server.core.ports import Agents
from server.core.task import Task
from server.core.workspace import Workspace
from server.telemetry.metrics import MeasuredAgents, Metrics
from tests.contracts.agents import AgentCase, ClientCase, FakeCase, Fault, cancelled
from tests.contracts.wire_case import WireCase
from tests.support import world
from tests.support.waiting import eventually_async

# The port's limit.
LIMIT_SECONDS = 2.0

Call = Callable[[Agents, Workspace, Task], Awaitable[object]]


@asynccontextmanager
async def _measured() -> AsyncIterator[AgentCase]:
    async with FakeCase.open() as case:
        case.agents = MeasuredAgents(case.fake, Metrics())
        yield case


_CASES: dict[str, Callable[[], AbstractAsyncContextManager[AgentCase]]] = {
    "fake": FakeCase.open,
    "wire": WireCase.open,
    "client": ClientCase.open,
    "measured": _measured,
}


@pytest.fixture(params=_CASES)
async def at(request: pytest.FixtureRequest) -> AsyncIterator[AgentCase]:
    """Every implementation in turn."""
    async with _CASES[request.param]() as case:
        yield case


async def start(agents: Agents, workspace: Workspace, task: Task) -> None:
    await agents.start_task(workspace, task)


async def cancel(agents: Agents, workspace: Workspace, task: Task) -> bool:
    return await agents.cancel_task(workspace, cancelled(task))


both = pytest.mark.parametrize("call", [start, cancel])


async def unreachable(call: Call, agents: Agents, workspace: Workspace, task: Task) -> float:
    """How long the call took to fail."""
    began = time.monotonic()
    with pytest.raises(AgentUnreachableError):
        await call(agents, workspace, task)
    return time.monotonic() - began


async def test_a_task_is_delivered(at: AgentCase) -> None:
    task = await at.new_task()
    assert not at.has(task)
    await start(at.agents, at.workspace, task)
    assert at.has(task)
    assert not at.is_cancelled(task)


async def test_a_task_may_be_delivered_again(at: AgentCase) -> None:
    task = await at.new_task()
    await start(at.agents, at.workspace, task)
    await start(at.agents, at.workspace, task)
    assert at.has(task)


async def test_a_cancellation_of_the_agents_task_is_known(at: AgentCase) -> None:
    task = await at.new_task()
    await start(at.agents, at.workspace, task)
    assert at.has(task)
    assert await cancel(at.agents, at.workspace, task) is True
    assert at.is_cancelled(task)
    assert await cancel(at.agents, at.workspace, task) is True


async def test_a_cancellation_of_a_task_that_the_agent_does_not_have_is_not_known(
    at: AgentCase,
) -> None:
    task = await at.new_task()
    assert await cancel(at.agents, at.workspace, task) is False


async def test_an_agent_that_works_on_another_task_takes_none(at: AgentCase) -> None:
    async with at.occupied():
        task = world.task(at.workspace.id)
        assert await unreachable(start, at.agents, at.workspace, task) < LIMIT_SECONDS
        assert not at.has(task)
        assert await cancel(at.agents, at.workspace, task) is False


@both
@pytest.mark.parametrize("fault", Fault)
async def test_an_agent_that_cannot_be_reached_is_given_up_in_time_and_reached_again(
    at: AgentCase, fault: Fault, call: Call
) -> None:
    task = await at.new_task()
    async with at.fault(fault) as workspace:
        assert await unreachable(call, at.agents, workspace, task) < LIMIT_SECONDS
    await start(at.agents, at.workspace, task)
    await eventually_async(lambda: at.has(task))
    assert await cancel(at.agents, at.workspace, task) is True


async def test_calls_do_not_wait_for_each_other(at: AgentCase) -> None:
    task = await at.new_task()
    await start(at.agents, at.workspace, task)
    assert at.has(task)
    calls = [cancel(at.agents, at.workspace, task) for _ in range(20)]
    assert await asyncio.wait_for(asyncio.gather(*calls), LIMIT_SECONDS) == [True] * 20


@both
async def test_calls_that_began_at_different_times_all_fail_in_time(
    at: AgentCase, call: Call
) -> None:
    """The first that gives up does not end those that began later."""
    task = await at.new_task()
    async with at.fault(Fault.FROZEN) as workspace:
        calls = []
        for _ in range(8):
            calls.append(asyncio.create_task(unreachable(call, at.agents, workspace, task)))
            await asyncio.wait(calls, timeout=0.1)
        assert max(await asyncio.gather(*calls)) < LIMIT_SECONDS


@both
async def test_a_caller_that_is_cancelled_ends_its_call_only(at: AgentCase, call: Call) -> None:
    task = await at.new_task()
    async with at.slow() as arrival:
        calling = asyncio.ensure_future(call(at.agents, at.workspace, task))
        await asyncio.wait_for(arrival(), LIMIT_SECONDS)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
    await start(at.agents, at.workspace, task)
    await eventually_async(lambda: at.has(task))
    assert await cancel(at.agents, at.workspace, task) is True
