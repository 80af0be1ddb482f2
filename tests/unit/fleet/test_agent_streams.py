"""The limit on open streams to agents, each on its own channel, with many agents on loopback."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
import pytest

from evershell.core.errors import AgentUnreachableError
from evershell.fleet import agent_client
from evershell.fleet.agent_client import AgentClient
from evershell.pod.signal_stream import SignalStream
from evershell.pod.tls import Connector, Options
from evershell.store.service_clock import machine_clock
from tests.support.waiting import eventually_async
from tests.unit.fleet.fake_agent import TASK, TOKENS, Context, FakeAgent, cancel, workspace_at

LIMIT = 4


class OpenChannels:
    """The channels that are open, and the largest number of them at one time."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.most = 0
        self.opened = 0


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> OpenChannels:
    seen = OpenChannels()

    class RecordedConnector(Connector):
        def open(self, address: str, name: str, options: Options) -> grpc.aio.Channel:
            channel = super().open(address, name, options)
            seen.open.append(address)
            seen.opened += 1
            seen.most = max(seen.most, len(seen.open))
            close = channel.close

            async def recorded(grace: float | None = None) -> None:
                await close(grace)
                seen.open.remove(address)

            monkeypatch.setattr(channel, "close", recorded)
            return channel

    monkeypatch.setattr(agent_client, "Connector", RecordedConnector)
    return seen


@pytest.fixture
async def client(channels: OpenChannels) -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, machine_clock, max_streams=LIMIT)
    yield client
    await client.aclose()
    assert channels.open == []


@asynccontextmanager
async def agents(count: int) -> AsyncIterator[list[FakeAgent]]:
    async with AsyncExitStack() as stack:
        started = [FakeAgent() for _ in range(count)]
        for agent in started:
            await agent.listen()
            stack.push_async_callback(agent.stop)
        yield started


class Held:
    """Makes agents hold their acknowledgements until `release`."""

    def __init__(self) -> None:
        self.arrived = 0
        self.release = asyncio.Event()

    async def __call__(self, number: int, context: Context) -> None:
        self.arrived += 1
        await self.release.wait()


@pytest.mark.usefixtures("one_attempt")
async def test_the_least_recently_used_channel_is_closed_for_a_new_one(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(LIMIT + 1) as (first, second, *others):
        for agent in (first, second, *others[:-1], first, others[-1]):
            assert await cancel(client, agent.address)
        await eventually_async(lambda: second.address not in channels.open)
        assert sorted(channels.open) == sorted(agent.address for agent in (first, *others))
        assert channels.opened == LIMIT + 1
        # A signal to the second agent opens its channel again.
        assert await cancel(client, second.address)
        assert channels.opened == LIMIT + 2


async def test_reads_take_the_channel_of_one_signalled_agent_at_most(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(2 * LIMIT) as started:
        signalled, others = started[:LIMIT], started[LIMIT:]
        for agent in signalled:
            assert await cancel(client, agent.address)
        for agent in (*others, *signalled[:2]):
            # FakeAgent answers reads like an agent of an earlier version.
            assert await client.current_iteration(workspace_at(agent.address), TASK) is None
        await eventually_async(lambda: len(channels.open) == LIMIT)
        kept = [agent.address for agent in signalled if agent.address in channels.open]
        assert len(kept) >= LIMIT - 1


async def test_a_stream_that_is_no_longer_kept_is_freed_at_once(
    client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector is off, so a cycle of references would keep the stream in memory."""
    streams: weakref.WeakSet[SignalStream] = weakref.WeakSet()

    def recorded(channel: grpc.aio.Channel, token: str) -> SignalStream:
        stream = SignalStream(channel, token)
        streams.add(stream)
        return stream

    monkeypatch.setattr(agent_client, "SignalStream", recorded)
    gc.disable()
    try:
        async with agents(3 * LIMIT) as started:
            for agent in started:
                assert await cancel(client, agent.address)
            await eventually_async(lambda: len(streams) == LIMIT)
    finally:
        gc.enable()


@pytest.mark.usefixtures("patient")
async def test_calls_beyond_the_limit_do_not_wait_and_their_channels_are_closed(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(3 * LIMIT) as started:
        held = Held()
        for agent in started:
            agent.before = held
        calls = [asyncio.create_task(cancel(client, agent.address)) for agent in started]
        await eventually_async(lambda: held.arrived == len(started))
        assert len(channels.open) == len(started)
        held.release.set()
        assert await asyncio.gather(*calls) == [True] * len(started)
        await eventually_async(lambda: len(channels.open) == LIMIT)
        # The channels that were used last are kept.
        assert channels.open == [agent.address for agent in started[-LIMIT:]]
        assert all(len(agent.signals) == 1 for agent in started)


# The last of several attempts may be too short to close the channel.
@pytest.mark.usefixtures("one_attempt")
async def test_the_channel_of_an_unreachable_agent_is_closed(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(1) as (agent,):
        await agent.stop()
        with pytest.raises(AgentUnreachableError):
            await cancel(client, agent.address)
    await eventually_async(lambda: not channels.open)
