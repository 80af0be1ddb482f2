"""All watchers of a workspace share one feed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, cast

import pytest

from evershell.core.errors import UnavailableError
from evershell.core.event import Event, EventBatch
from evershell.core.event_feeds import EventFeeds
from evershell.core.watch_events import watch_events
from tests.support.waiting import eventually_async
from tests.support.world import World, caller, iteration

# The last `seq` of a running task that has done nothing yet.
LAST_SEQ = 2


class Watched:
    """A running task with watchers. Counts how often events are read and encoded."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.feeds = EventFeeds(world.store, world.subscriptions, world.clock)
        self.reads: list[int] = []
        self.encoded: list[int] = []
        read = world.store.list_events

        async def count_and_read(workspace_id: str, after_seq: int, limit: int) -> EventBatch:
            self.reads.append(after_seq)
            return await read(workspace_id, after_seq, limit)

        monkeypatch.setattr(world.store, "list_events", count_and_read)

    async def begin(self) -> None:
        self.workspace, self.task = await self.world.add_busy()

    async def commit(self, *numbers: int) -> None:
        await self.world.commit(self.workspace.id, self.task.id, *map(iteration, numbers))

    def watch(
        self, after: int = LAST_SEQ, opening: Sequence[Any] = ()
    ) -> AsyncGenerator[Any, None]:
        watching: AsyncIterator[Any] = watch_events(
            caller(),
            self.workspace.id,
            after,
            self.world.store,
            self.feeds,
            self.encode,
            lambda heartbeat: heartbeat,
            opening,
        )
        return cast(AsyncGenerator[Any, None], watching)

    def encode(self, events: Sequence[Event]) -> Sequence[int]:
        self.encoded += [event.seq for event in events]
        return [event.seq for event in events]

    async def are_waiting(self) -> None:
        """Waits until the feed and its watchers have nothing left to do."""
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def watched(world: World, monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched(world, monkeypatch)
    await watched.begin()
    return watched


def next_of(watching: list[AsyncGenerator[Any, None]]) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(anext(each)) for each in watching]


async def test_an_event_is_read_and_encoded_once_for_all_watchers(watched: Watched) -> None:
    watching = [watched.watch() for _ in range(40)]
    received = next_of(watching)
    await watched.are_waiting()
    for number in range(1, 4):
        watched.reads.clear()
        await watched.commit(number)
        assert await asyncio.gather(*received) == [LAST_SEQ + number] * 40
        await watched.are_waiting()
        # The second read shows that there are no further events.
        assert watched.reads == [LAST_SEQ + number - 1, LAST_SEQ + number]
        received = next_of(watching)
        await watched.are_waiting()
    assert watched.encoded == [3, 4, 5]
    for each in received:
        assert not each.done()
        each.cancel()
    await asyncio.gather(*received, return_exceptions=True)
    await watched.are_waiting()
    assert not watched.world.subscriptions.has_subscribers(watched.workspace.id)


async def test_a_slow_watcher_reads_what_it_has_missed_and_delays_nobody(
    watched: Watched,
) -> None:
    slow, fast = watched.watch(after=1), watched.watch()
    assert await anext(slow) == LAST_SEQ
    for number in range(1, 11):
        (received,) = next_of([fast])
        await watched.are_waiting()
        await watched.commit(number)
        assert await received == LAST_SEQ + number
        await watched.are_waiting()
    watched.reads.clear()
    assert [await anext(slow) for _ in range(10)] == list(range(3, 13))
    assert LAST_SEQ in watched.reads, "the slow watcher has read the log"
    await slow.aclose()
    await fast.aclose()


async def test_a_watcher_misses_nothing_while_its_opening_is_written(watched: Watched) -> None:
    """While the opening is written, the feed sends two messages. A watcher can keep only one."""
    watching = watched.watch(opening=["opening"])
    assert await anext(watching) == "opening"
    for number in (1, 2):
        await watched.are_waiting()
        await watched.commit(number)
        await watched.are_waiting()
    async with asyncio.timeout(30):
        assert [await anext(watching) for _ in range(2)] == [LAST_SEQ + 1, LAST_SEQ + 2]
    await watching.aclose()


async def test_a_failed_read_ends_the_watchers_and_the_next_one_begins_again(
    watched: Watched,
) -> None:
    busy = watched.watch(after=1)
    assert await anext(busy) == LAST_SEQ
    received = next_of([watched.watch() for _ in range(3)])
    await watched.are_waiting()
    watched.world.store.unavailable = True
    watched.world.subscriptions.publish(watched.workspace.id)
    ends = await asyncio.gather(*received, return_exceptions=True)
    assert [type(end) for end in ends] == [UnavailableError] * 3
    watched.world.store.unavailable = False
    again = watched.watch()
    (later,) = next_of([again])
    await watched.are_waiting()
    await watched.commit(1)
    assert await later == LAST_SEQ + 1
    await again.aclose()
    with pytest.raises(UnavailableError):
        await anext(busy)


async def test_other_calls_are_served_between_the_watchers_of_an_event(watched: Watched) -> None:
    count = 64
    received = next_of([watched.watch() for _ in range(count)])
    await watched.are_waiting()
    await watched.commit(1)
    seen: set[int] = set()

    async def woken() -> bool:
        seen.add(sum(each.done() for each in received))
        await asyncio.sleep(0)
        return count in seen

    while not await woken():
        pass
    assert len(seen) >= 4
    await asyncio.gather(*received)


async def test_the_last_watcher_ends_the_feed(watched: Watched) -> None:
    watching = [watched.watch() for _ in range(2)]
    received = next_of(watching)
    await watched.are_waiting()
    for each in received:
        assert watched.world.subscriptions.has_subscribers(watched.workspace.id)
        each.cancel()
        await watched.are_waiting()
    await eventually_async(
        lambda: not watched.world.subscriptions.has_subscribers(watched.workspace.id)
    )
    assert not watched.feeds._readers
