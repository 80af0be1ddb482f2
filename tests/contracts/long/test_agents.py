"""The contract of Agents: the implementation over gRPC, the one with metrics, and the fake."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Agents
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.telemetry.metrics import MeasuredAgents, Metrics
from tests.contracts.agents import AgentCase, ClientCase, FakeCase, Fault, cancelled
from tests.support import world
from tests.support.waiting import eventually_async

# Much longer than the limit of 2 s that Agents states, because the machine may be busy.
# tests/unit/fleet/test_agent_client.py tests the limit itself.
LIMIT_SECONDS = 10.0

Call = Callable[[Agents, Workspace, Task], Awaitable[object]]


@asynccontextmanager
async def _measured() -> AsyncIterator[AgentCase]:
    async with FakeCase.open() as case:
        case.agents = MeasuredAgents(case.fake, Metrics())
        yield case


_CASES: dict[str, Callable[[], AbstractAsyncContextManager[AgentCase]]] = {
    "fake": FakeCase.open,
    "client": ClientCase.open,
    "measured": _measured,
}


@pytest.fixture(params=_CASES)
async def case(request: pytest.FixtureRequest) -> AsyncIterator[AgentCase]:
    """Each implementation of Agents in turn."""
    async with _CASES[request.param]() as case:
        yield case


async def start(agents: Agents, workspace: Workspace, task: Task) -> None:
    await agents.start_task(workspace, task)


async def cancel(agents: Agents, workspace: Workspace, task: Task) -> bool:
    return await agents.cancel_task(workspace, cancelled(task))


async def look(agents: Agents, workspace: Workspace, task: Task) -> int:
    current = await agents.current_iteration(workspace, task)
    assert current is not None
    return current.number


every_call = pytest.mark.parametrize("call", [start, cancel, look])


async def unreachable(call: Call, agents: Agents, workspace: Workspace, task: Task) -> float:
    """Makes the call, which must fail. Returns how many seconds it took."""
    began = time.monotonic()
    with pytest.raises(AgentUnreachableError):
        await call(agents, workspace, task)
    return time.monotonic() - began


async def test_a_task_is_delivered_and_may_be_delivered_again(case: AgentCase) -> None:
    task = world.task(case.workspace.id)
    assert not case.has(task)
    for _ in range(2):
        await start(case.agents, case.workspace, task)
        assert case.has(task)
        assert not case.is_cancelled(task)


async def test_a_cancellation_of_the_task_of_the_agent_is_known(case: AgentCase) -> None:
    task = world.task(case.workspace.id)
    await start(case.agents, case.workspace, task)
    assert case.has(task)
    assert await cancel(case.agents, case.workspace, task) is True
    assert case.is_cancelled(task)
    assert await cancel(case.agents, case.workspace, task) is True


async def test_a_cancellation_of_a_task_that_the_agent_does_not_have_is_not_known(
    case: AgentCase,
) -> None:
    task = world.task(case.workspace.id)
    assert await cancel(case.agents, case.workspace, task) is False


async def test_an_agent_reports_the_iteration_of_its_own_task(case: AgentCase) -> None:
    task = world.task(case.workspace.id)
    assert await look(case.agents, case.workspace, task) == 0
    await start(case.agents, case.workspace, task)
    assert await look(case.agents, case.workspace, task) == 1


@every_call
@pytest.mark.parametrize("fault", Fault)
async def test_a_call_to_an_unreachable_agent_fails_in_time_and_a_later_call_succeeds(
    case: AgentCase, fault: Fault, call: Call
) -> None:
    task = world.task(case.workspace.id)
    async with case.fault(fault) as workspace:
        assert await unreachable(call, case.agents, workspace, task) < LIMIT_SECONDS
    await start(case.agents, case.workspace, task)
    await eventually_async(lambda: case.has(task))
    assert await cancel(case.agents, case.workspace, task) is True
