"""Watches that follow the event log of a workspace."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from evershell.core.caller import Caller
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Event
from evershell.core.event_feeds import BATCH_EVENTS, EventFeeds, Heartbeat
from evershell.core.task import TaskStarted
from evershell.core.watch_events import watch_events
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import World, caller, iteration


class Scripted:
    """Implements core.ports.Subscriptions.

    Each wait runs the next step of the script. Once the script has no more steps, each wait times
    out.
    """

    def __init__(self, world: World, *script: Callable[[], Awaitable[object]]) -> None:
        self._world = world
        self._script = list(script)
        self.subscribed = 0
        self.waits: list[float] = []
        self.draining = False

    @asynccontextmanager
    async def subscribe(self, workspace_id: str | None) -> AsyncIterator["Scripted"]:
        self.subscribed += 1
        try:
            yield self
        finally:
            self.subscribed -= 1

    async def wait(self, timeout_seconds: float) -> bool:
        # Lets other asyncio tasks run.
        await asyncio.sleep(0)
        self.waits.append(timeout_seconds)
        if self._script:
            await self._script.pop(0)()
        else:
            self._world.clock.advance(timeout_seconds)
        return not self.draining


def unencoded(events: Sequence[Event]) -> Sequence[Event]:
    return events


def as_is(heartbeat: Heartbeat) -> Any:
    return heartbeat


def stream(
    world: World,
    workspace_id: str,
    subscriptions: Scripted,
    after: int = 0,
    by: Caller | None = None,
    encode: Callable[[Sequence[Event]], Sequence[Any]] = unencoded,
    opening: Sequence[Any] = (),
    feeds: EventFeeds | None = None,
) -> Any:
    return watch_events(
        by or caller(),
        workspace_id,
        after,
        world.store,
        feeds or EventFeeds(world.store, subscriptions, world.clock),
        encode,
        as_is,
        opening=opening,
    )


async def watch(
    world: World,
    workspace_id: str,
    subscriptions: Scripted,
    *,
    after: int = 0,
    until: int,
    by: Caller | None = None,
) -> list[Event | Heartbeat]:
    """Returns the first `until` messages of a stream."""
    watching = stream(world, workspace_id, subscriptions, after, by)
    found: list[Event | Heartbeat] = [await anext(watching) for _ in range(until)]
    await watching.aclose()
    return found


def seq_of(item: Event | Heartbeat) -> int:
    return item.position if isinstance(item, Heartbeat) else item.seq


def seqs(items: list[Event | Heartbeat]) -> list[int]:
    return [seq_of(item) for item in items]


async def test_a_stream_starts_at_the_first_event(world: World) -> None:
    busy, _ = await world.add_busy()
    found = await watch(world, busy.id, Scripted(world), until=2)
    assert found == await world.events(busy.id)


async def test_each_batch_is_encoded_once_and_what_encode_returns_is_yielded(world: World) -> None:
    busy, running = await world.add_busy()
    await world.commit(
        busy.id, running.id, *(iteration(number) for number in range(1, BATCH_EVENTS + 2))
    )
    batches: list[list[int]] = []

    def encode(events: Sequence[Event]) -> list[str]:
        batches.append([event.seq for event in events])
        return [f"event {event.seq}" for event in events]

    watching = stream(world, busy.id, Scripted(world), after=1, encode=encode)
    found = [await anext(watching) for _ in range(BATCH_EVENTS + 3)]
    assert found[:-1] == [f"event {seq}" for seq in range(2, BATCH_EVENTS + 4)]
    assert isinstance(found[-1], Heartbeat) and found[-1].position == BATCH_EVENTS + 3
    assert batches == [list(range(2, BATCH_EVENTS + 2)), [BATCH_EVENTS + 2, BATCH_EVENTS + 3]]


async def test_a_stream_ends_when_the_workspace_is_deleted(world: World) -> None:
    busy, _ = await world.add_busy()

    async def delete() -> None:
        del world.store.workspaces[busy.id]

    watching = stream(world, busy.id, Scripted(world, delete))
    assert [(await anext(watching)).seq for _ in range(2)] == [1, 2]
    with pytest.raises(Failure, match="There is no workspace"):
        await anext(watching)


async def test_a_stream_skips_no_event_that_a_deletion_has_removed(world: World) -> None:
    busy, running = await world.add_busy()
    await world.commit(busy.id, running.id, iteration(1))
    await world.set_status(busy.id, WorkspaceStatus.DELETING)
    del world.store.events[busy.id][1]
    with pytest.raises(Failure, match="There is no workspace"):
        await anext(stream(world, busy.id, Scripted(world), after=1))


async def test_a_heartbeat_names_the_last_event_of_the_log(world: World) -> None:
    busy, _ = await world.add_busy()
    idle = await world.add()
    for at, last_seq in ((idle, 0), (busy, 2)):
        (beat,) = await watch(world, at.id, Scripted(world), after=last_seq, until=1)
        assert (type(beat), seq_of(beat)) == (Heartbeat, last_seq)


async def test_a_stream_from_beyond_the_log_names_its_last_event(world: World) -> None:
    """Otherwise, a watcher with a position of another log would wait for ever."""
    busy, _ = await world.add_busy()
    idle = await world.add()
    for at, last_seq in ((idle, 0), (busy, 2)):
        for after in (last_seq + 1, 2**63 - 1):
            opened = stream(world, at.id, Scripted(world), after, opening=("opened",))
            with pytest.raises(Failure) as raised:
                await anext(opened)
            assert (raised.value.slug, raised.value.details["fields"]) == (
                "validation_error",
                {"after": f"must be at most {last_seq}: the log ends with seq {last_seq}"},
            )


async def test_a_stream_resumes_after_an_event_that_the_feed_has_not_read_yet(world: World) -> None:
    """The watcher has seen the event on another worker."""
    busy, running = await world.add_busy()
    subscriptions = Scripted(world)
    feeds = EventFeeds(world.store, subscriptions, world.clock)
    watching = [stream(world, busy.id, subscriptions, 2, feeds=feeds)]
    received = asyncio.ensure_future(anext(watching[0]))
    await world.commit(busy.id, running.id, iteration(1))
    watching.append(stream(world, busy.id, subscriptions, 3, feeds=feeds))
    assert (await anext(watching[1]), (await received).seq) == (Heartbeat(world.clock(), 3), 3)
    for each in watching:
        await each.aclose()


async def test_the_opening_comes_after_the_first_read(world: World) -> None:
    busy, _ = await world.add_busy()
    first, second = await world.events(busy.id)
    for after, expected in ((0, ["opened", first, second]), (2, ["opened", Heartbeat])):
        watching = stream(world, busy.id, Scripted(world), after, opening=("opened",))
        found = [await anext(watching) for _ in expected]
        assert [Heartbeat if isinstance(item, Heartbeat) else item for item in found] == expected
        await watching.aclose()
    world.store.unavailable = True
    with pytest.raises(UnavailableError):
        await anext(stream(world, busy.id, Scripted(world), opening=("opened",)))


async def test_a_spurious_subscription_does_not_delay_the_heartbeat(world: World) -> None:
    busy, _ = await world.add_busy()

    async def nothing() -> None:
        world.clock.advance(1.5)

    subscriptions = Scripted(world, nothing, nothing)
    (beat,) = await watch(world, busy.id, subscriptions, after=2, until=1)
    assert isinstance(beat, Heartbeat)
    assert subscriptions.waits == [4, 2.5, 1]


async def test_a_clock_that_steps_back_does_not_silence_the_heartbeats(world: World) -> None:
    busy, _ = await world.add_busy()

    async def step_back() -> None:
        world.clock.advance(-3_600)

    subscriptions = Scripted(world, step_back)
    (beat,) = await watch(world, busy.id, subscriptions, after=2, until=1)
    assert isinstance(beat, Heartbeat)
    assert subscriptions.waits == [4, 4]


async def test_an_event_restarts_the_heartbeat_interval(world: World) -> None:
    busy, running = await world.add_busy()

    async def late() -> None:
        world.clock.advance(3)
        await world.commit(busy.id, running.id, iteration(1))

    subscriptions = Scripted(world, late)
    found = await watch(world, busy.id, subscriptions, after=2, until=2)
    assert isinstance(found[1], Heartbeat)
    assert subscriptions.waits == [4, 4]


async def test_a_quiet_log_is_read_once_for_each_heartbeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, _ = await world.add_busy()
    subscriptions, reads = Scripted(world), count()
    read = world.store.list_events

    async def count_and_read(*place: Any) -> Any:
        next(reads)
        return await read(*place)

    monkeypatch.setattr(world.store, "list_events", count_and_read)
    await watch(world, busy.id, subscriptions, after=2, until=3)
    assert next(reads) <= 1 + len(subscriptions.waits)


async def test_an_event_between_the_read_and_the_wait_is_not_lost(world: World) -> None:
    """The watcher has subscribed before its first read."""
    busy, running = await world.add_busy()
    subscriptions = Scripted(world)
    read, numbers = world.store.list_events, count(1)

    async def read_while_subscribed(workspace_id: str, after_seq: int, limit: int) -> object:
        assert subscriptions.subscribed == 1
        if next(numbers) == 1:
            await world.commit(busy.id, running.id, TaskStarted(), iteration(1))
        return await read(workspace_id, after_seq, limit)

    world.store.list_events = read_while_subscribed  # type: ignore[method-assign,assignment]
    assert seqs(await watch(world, busy.id, subscriptions, after=2, until=1)) == [3]


async def test_a_watcher_that_leaves_is_unsubscribed(world: World) -> None:
    busy, _ = await world.add_busy()
    subscriptions = Scripted(world)
    await watch(world, busy.id, subscriptions, until=1)
    assert subscriptions.subscribed == 0


async def test_the_checks_come_before_the_first_message(world: World) -> None:
    busy, _ = await world.add_busy()
    for by, workspace_id, after, slug in (
        (caller("tasks:write"), "?", 0, "validation_error"),
        (caller("tasks:write"), busy.id, -1, "validation_error"),
        (caller("tasks:write"), "ws_unknown", 0, "permission_denied"),
        (caller(org_id="org_b"), busy.id, 0, "workspace_not_found"),
        (caller("workspace:read:own", actor_id="user_2"), busy.id, 0, "permission_denied"),
    ):
        subscriptions = Scripted(world)
        with pytest.raises(Failure) as raised:
            await watch(world, workspace_id, subscriptions, after=after, until=1, by=by)
        assert (raised.value.slug, subscriptions.waits) == (slug, [])


async def test_a_database_outage_ends_the_stream(world: World) -> None:
    busy, _ = await world.add_busy()

    async def outage() -> None:
        world.store.unavailable = True

    with pytest.raises(UnavailableError):
        await watch(world, busy.id, Scripted(world, outage), after=2, until=1)


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_stream_from_a_removed_event_names_the_first_one_there_is(
    world: World, is_empty: bool
) -> None:
    busy, running = await world.add_busy()
    await world.end(busy.id, running.id)
    if not is_empty:
        await world.run(busy)
    before = world.clock() + timedelta(seconds=1)
    assert (await world.store.remove_old_tasks(busy.id, before, 0, 100)).events == 3
    (first,) = await watch(world, busy.id, Scripted(world), until=1)
    assert (type(first), seq_of(first)) == ((Heartbeat, 3) if is_empty else (Event, 4))
    (first,) = await watch(world, busy.id, Scripted(world), after=3, until=1)
    assert seq_of(first) == (3 if is_empty else 4)
    with pytest.raises(Failure) as raised:
        await watch(world, busy.id, Scripted(world), after=2, until=1)
    assert (raised.value.slug, raised.value.details["fields"]) == (
        "validation_error",
        {"after": "must be 0 or at least 3: the log now begins with seq 4"},
    )


async def test_a_watcher_whose_next_events_were_removed_gets_an_error_and_no_gap(
    world: World,
) -> None:
    busy, running = await world.add_busy()

    async def remove() -> None:
        await world.end(busy.id, running.id)
        await world.run(busy)
        before = world.clock() + timedelta(seconds=1)
        await world.store.remove_old_tasks(busy.id, before, 0, 100)

    with pytest.raises(Failure, match="begins with seq 4"):
        await watch(world, busy.id, Scripted(world, remove), after=2, until=1)


async def test_a_draining_server_ends_the_stream_and_names_the_event_to_resume_after(
    world: World,
) -> None:
    busy, _ = await world.add_busy()
    subscriptions = Scripted(world)
    subscriptions.draining = True
    watching = stream(world, busy.id, subscriptions, after=2)
    # After a first message, the failure can be reported within the stream.
    assert await anext(watching) == Heartbeat(world.clock(), 2)
    with pytest.raises(Failure, match="after=2") as raised:
        await anext(watching)
    assert (raised.value.slug, raised.value.details["retry_after_seconds"]) == ("unavailable", 1)
