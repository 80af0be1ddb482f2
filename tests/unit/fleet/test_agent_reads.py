"""Reads of agents that answer late or never. Signals still reach such agents."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from evershell.agent.v1.agent_service_pb2 import CurrentIteration
from structlog.testing import capture_logs

from evershell.core import deadline
from evershell.core.errors import AgentUnreachableError
from evershell.fleet import agent_reads
from evershell.fleet.agent_client import AgentClient
from evershell.fleet.agent_reads import AgentReads
from evershell.pod.signal_stream import NotAcknowledgedError
from tests.support.waiting import eventually_async
from tests.unit.fleet.fake_agent import (
    TASK,
    Context,
    FakeAgent,
    answer_at_once,
    cancel,
    never,
    workspace_at,
)

POLLERS = 150


@pytest.fixture(autouse=True)
def long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a silent agent count as silent until the test ends, even on a busy machine."""
    monkeypatch.setattr(agent_reads, "_SILENT_SECONDS", 600.0)


async def read(client: AgentClient, agent: FakeAgent) -> int:
    seen = await client.current_iteration(workspace_at(agent.address), TASK)
    assert seen is not None
    return seen.number


async def poll(client: AgentClient, agent: FakeAgent) -> set[object]:
    """The different answers, or types of errors, that POLLERS concurrent reads get."""
    reads = (read(client, agent) for _ in range(POLLERS))
    answers = await asyncio.gather(*reads, return_exceptions=True)
    return {type(each) if isinstance(each, BaseException) else each for each in answers}


async def test_pollers_of_a_silent_agent_make_one_attempt(
    client: AgentClient, agent: FakeAgent
) -> None:
    agent.iteration, agent.before_read = CurrentIteration(number=4), never
    with capture_logs() as logged:
        for _ in range(3):
            assert await poll(client, agent) == {AgentUnreachableError}
    assert agent.reads == 1
    assert [each["event"] for each in logged] == ["agent_not_read"]


@pytest.mark.usefixtures("patient")
async def test_pollers_of_a_slow_agent_share_its_answer(
    client: AgentClient, agent: FakeAgent
) -> None:
    go_on = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await go_on.wait()

    agent.iteration, agent.before_read = CurrentIteration(number=4), wait
    polls = asyncio.create_task(poll(client, agent))
    await eventually_async(lambda: agent.reads)
    go_on.set()
    assert await polls == {4}
    assert agent.reads == 1
    # The next caller starts a new read.
    agent.iteration = CurrentIteration(number=5)
    assert await read(client, agent) == 5


async def test_a_signal_passes_and_ends_the_silence(client: AgentClient, agent: FakeAgent) -> None:
    agent.iteration, agent.before_read = CurrentIteration(number=4), never
    with pytest.raises(AgentUnreachableError):
        await read(client, agent)
    agent.before_read = answer_at_once
    with pytest.raises(AgentUnreachableError):
        await read(client, agent)
    assert await cancel(client, agent.address)
    assert await read(client, agent) == 4


@pytest.mark.usefixtures("patient")
async def test_a_read_that_fails_leaves_the_stream_of_signals_open(
    client: AgentClient, agent: FakeAgent
) -> None:
    async def fail(number: int, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    agent.iteration, agent.before_read = CurrentIteration(number=4), fail
    assert await cancel(client, agent.address)
    with pytest.raises(AgentUnreachableError):
        await read(client, agent)
    assert await cancel(client, agent.address)
    assert len(agent.opened) == 1


@pytest.mark.usefixtures("patient")
async def test_a_read_whose_first_answer_is_an_error_is_repeated_once(
    client: AgentClient, agent: FakeAgent
) -> None:
    async def fail(number: int, context: Context) -> None:
        if number != 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection ends")

    agent.iteration, agent.before_read = CurrentIteration(number=4), fail
    assert await read(client, agent) == 4
    agent.reads = 2
    with pytest.raises(AgentUnreachableError):
        await read(client, agent)
    assert agent.reads == 4


@pytest.mark.usefixtures("patient")
async def test_those_who_leave_do_not_end_the_read_of_the_others(
    client: AgentClient, agent: FakeAgent
) -> None:
    """A cancelled caller and an early deadline do not make the agent count as silent."""
    go_on = asyncio.Event()

    async def wait(number: int, context: Context) -> None:
        await go_on.wait()

    async def hurried() -> None:
        deadline.begin(0.3)
        await read(client, agent)

    agent.iteration, agent.before_read = CurrentIteration(number=4), wait
    first = asyncio.create_task(hurried())
    second, third = (asyncio.create_task(read(client, agent)) for _ in range(2))
    await eventually_async(lambda: agent.reads)
    second.cancel()
    with pytest.raises(AgentUnreachableError):
        await asyncio.wait_for(first, 30)
    go_on.set()
    assert await third == 4
    assert agent.reads == 1


async def test_many_silent_agents_together_are_read_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, started = 0.0, 0
    monkeypatch.setattr(agent_reads, "_SILENT_SECONDS", 3.0)
    monkeypatch.setattr(agent_reads, "time", SimpleNamespace(monotonic=lambda: now))
    reads: AgentReads[int, None] = AgentReads()

    async def fail() -> None:
        nonlocal started
        started += 1
        raise NotAcknowledgedError("it is silent")

    async def poll_all(agents: int, seconds: int) -> int:
        """How many reads start after the first second if each agent is polled once a second."""
        nonlocal now, started
        for second in range(seconds + 1):
            for agent in range(agents):
                with pytest.raises(NotAcknowledgedError):
                    await reads.read(agent, "task", fail, 60.0)
            if not second:
                started = 0
            now += 1
        return started

    assert await poll_all(1_000, 60) <= 61 * 50
    now += 600
    # If only a few agents are silent, each of them is read every 3 s.
    assert await poll_all(10, 30) == 10 * 10
