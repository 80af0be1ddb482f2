"""The bound on channels to agents, with many agents on loopback ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from grpc.aio import Channel

from evershell.core.errors import AgentUnreachableError
from evershell.fleet import agent_channels
from evershell.fleet.agent_channels import AgentChannel, AgentChannels, Key
from evershell.fleet.agent_client import AgentClient
from evershell.store.service_clock import machine_clock
from tests.support.waiting import eventually_async
from tests.unit.fleet.test_agent_client import TOKENS, Context, FakeAgent, cancel

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

    class RecordedChannel(AgentChannel):
        def __init__(self, key: Key, channel: Channel, on_idle: object) -> None:
            super().__init__(key, channel, on_idle)  # type: ignore[arg-type]
            seen.open.append(key[0])
            seen.opened += 1
            seen.most = max(seen.most, len(seen.open))

        async def close(self) -> None:
            seen.open.remove(self.key[0])
            await super().close()

    monkeypatch.setattr(agent_channels, "AgentChannel", RecordedChannel)
    return seen


@pytest.fixture
async def client(channels: OpenChannels) -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, machine_clock, max_channels=LIMIT)
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
    """Makes agents hold their calls until `release`."""

    def __init__(self) -> None:
        self.arrived = 0
        self.release = asyncio.Event()

    async def __call__(self, attempt: int, context: Context) -> None:
        self.arrived += 1
        await self.release.wait()


async def test_the_least_recently_used_channel_is_closed_for_a_new_one(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(LIMIT + 1) as (first, second, *others):
        for agent in (first, second, *others[:-1], first, others[-1]):
            assert await cancel(client, agent.address)
        await eventually_async(lambda: second.address not in channels.open)
        assert sorted(channels.open) == sorted(agent.address for agent in (first, *others))
        assert channels.opened == LIMIT + 1
        # The closed one is opened again.
        assert await cancel(client, second.address)
        assert channels.opened == LIMIT + 2


@pytest.mark.usefixtures("patient")
async def test_the_number_of_channels_is_bounded_under_load(
    client: AgentClient, channels: OpenChannels
) -> None:
    """At most LIMIT calls are in flight, to five times as many agents."""
    async with agents(5 * LIMIT) as started:
        slots = asyncio.Semaphore(LIMIT)

        async def call(agent: FakeAgent) -> bool:
            async with slots:
                return await cancel(client, agent.address)

        answers = await asyncio.gather(*(call(agent) for agent in started * 10))
        assert answers == [True] * 50 * LIMIT
        # Each call got its answer at the first attempt: no channel was closed under it.
        assert all(len(agent.requests) == 10 for agent in started)
        await eventually_async(lambda: len(channels.open) <= LIMIT)
        # A channel that is being closed is still counted here.
        assert channels.most <= 2 * LIMIT


@pytest.mark.usefixtures("patient")
async def test_a_channel_with_a_call_in_flight_is_not_closed(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(3 * LIMIT) as (busy, *others):
        held = Held()
        busy.before = held
        call = asyncio.create_task(cancel(client, busy.address))
        await eventually_async(lambda: held.arrived)
        for agent in others:
            assert await cancel(client, agent.address)
            assert busy.address in channels.open
        held.release.set()
        assert await call is True
        assert len(busy.requests) == 1


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
        assert all(len(agent.requests) == 1 for agent in started)


async def test_a_channel_that_is_forgotten_is_closed_after_its_last_call(
    channels: OpenChannels,
) -> None:
    kept = AgentChannels(LIMIT)
    address = "127.0.0.1:1"
    key = kept.key(address, "ws_1", 1)
    with kept.channel(key), kept.channel(key):
        kept.forget(key)
        # The next call gets a new channel.
        with kept.channel(key):
            assert channels.open == [address] * 2
        await asyncio.sleep(0)
        assert channels.open == [address] * 2
    await eventually_async(lambda: channels.open == [address])
    kept.forget(key)
    await eventually_async(lambda: not channels.open)
    await kept.aclose()


async def test_the_channel_of_an_unreachable_agent_is_closed(
    client: AgentClient, channels: OpenChannels
) -> None:
    async with agents(1) as (agent,):
        await agent.stop()
        with pytest.raises(AgentUnreachableError):
            await cancel(client, agent.address)
    await eventually_async(lambda: not channels.open)
