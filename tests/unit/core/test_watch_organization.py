"""Watches that follow the events of all workspaces of an organization."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from evershell.core import event_feeds
from evershell.core.caller import Caller, CredentialKind
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Event, LogEntry, LogScope
from evershell.core.event_feeds import BATCH_EVENTS, HEARTBEAT_SECONDS, EventFeeds, Heartbeat
from evershell.core.watch_organization import MAX_POSITIONS_BEHIND, watch_organization
from evershell.store.memory.workspaces import MemoryLogEnd
from tests.support.waiting import eventually_async
from tests.support.world import ORG, World, caller, iteration

Watching = AsyncGenerator[Any, None]
OWN = caller("workspace:read:own")


class Organization:
    """Two workspaces with running tasks. Counts how often the log is read."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.feeds = EventFeeds(world.store, world.subscriptions, world.clock)
        # The scopes, `after` and `until` of each read.
        self.reads: list[tuple[frozenset[LogScope], int, int]] = []
        read = world.store.list_log_events

        async def count_and_read(
            scopes: Any, after: int, until: int, limit: int, **options: Any
        ) -> Any:
            self.reads.append((frozenset(scopes), after, until))
            await self.before_read()
            return await read(scopes, after, until, limit, **options)

        monkeypatch.setattr(world.store, "list_log_events", count_and_read)
        # The tail reads at once when the test lets it.
        monkeypatch.setattr(event_feeds, "TAIL_SECONDS", 0.001)

        # How often the tail has looked for the end of the log.
        self.looks = 0
        advance = MemoryLogEnd.advance

        async def count_and_advance(end: MemoryLogEnd) -> bool:
            self.looks += 1
            return await advance(end)

        monkeypatch.setattr(MemoryLogEnd, "advance", count_and_advance)

    async def tail_has_read(self) -> None:
        """Waits until the tail has looked at the log, and then at the heartbeats that are due."""
        until = self.looks + 2
        await eventually_async(lambda: self.looks >= until)

    async def before_read(self) -> None:
        """Called before each read of events."""

    async def begin(self) -> None:
        self.busy = [await self.world.add_busy() for _ in range(2)]

    async def commit(self, of: int, *numbers: int) -> None:
        workspace, task = self.busy[of]
        await self.world.commit(workspace.id, task.id, *map(iteration, numbers))

    def watch(
        self, after: int = 0, by: Caller | None = None, opening: Sequence[Any] = ()
    ) -> Watching:
        watching: Any = watch_organization(
            by or caller(),
            after,
            self.world.store,
            self.feeds,
            self.world.clock,
            lambda events: events,
            lambda heartbeat: heartbeat,
            opening,
        )
        return cast(Watching, watching)

    async def begun(self, by: Caller | None = None) -> Watching:
        """A watch of new events, whose first heartbeat was received."""
        watching = self.watch(by=by)
        assert await anext(watching) == Heartbeat(self.world.clock(), self.world.store.position)
        return watching


async def events(watching: Watching, count: int) -> list[tuple[str, int]]:
    """The workspaces and the seqs of the next events. Skips heartbeats."""
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            if isinstance(item := await anext(watching), Event):
                found.append((item.workspace_id, item.seq))
    return found


@pytest.fixture
async def organization(world: World, monkeypatch: pytest.MonkeyPatch) -> Organization:
    made = Organization(world, monkeypatch)
    await made.begin()
    return made


async def test_a_watch_begins_with_a_heartbeat_and_has_the_new_events(
    organization: Organization,
) -> None:
    (one, _), (two, _) = organization.busy
    watching = organization.watch(opening=["opened"])
    assert await anext(watching) == "opened"
    assert await anext(watching) == Heartbeat(
        organization.world.clock(), organization.world.store.position
    )
    await organization.commit(0, 1)
    await organization.commit(1, 1, 2)
    await organization.commit(0, 2)
    expected = [(one.id, 3), (two.id, 3), (two.id, 4), (one.id, 4)]
    assert await events(watching, 4) == expected
    await watching.aclose()


async def test_an_event_is_read_once_for_all_watchers_and_organizations(
    organization: Organization,
) -> None:
    world = organization.world
    foreign, running = await world.add_busy(org_id="org_b")
    stranger = caller(org_id="org_b")
    watching = [await organization.begun() for _ in range(20)]
    watching += [await organization.begun(by=by) for by in (OWN, stranger)]
    await organization.commit(0, 1)
    await world.commit(foreign.id, running.id, iteration(1))
    mine = (organization.busy[0][0].id, 3)
    found = [await events(each, 1) for each in watching]
    assert found == [[mine]] * 21 + [[(foreign.id, 3)]]
    everyone = {LogScope(ORG), LogScope(ORG, "user_1"), LogScope("org_b")}
    assert {scopes for scopes, _, _ in organization.reads} == {frozenset(everyone)}
    for each in watching:
        await each.aclose()


async def test_a_watch_with_own_scope_has_only_the_workspaces_of_its_user(
    organization: Organization,
) -> None:
    world = organization.world
    others = [await world.add_busy(created_by_user_id=user) for user in ("user_2", None)]
    own = await organization.begun(by=OWN)
    key = caller("workspace:read:own", actor_id="user_1", kind=CredentialKind.API_KEY)
    nothing = await organization.begun(by=key)
    for workspace, task in others:
        await world.commit(workspace.id, task.id, iteration(1))
    await organization.commit(1, 1)
    assert await events(own, 1) == [(organization.busy[1][0].id, 3)]
    # The heartbeat says how far the log was read, although the watch has no event.
    received = asyncio.ensure_future(anext(nothing))
    world.clock.advance(4)
    assert await received == Heartbeat(world.clock(), world.store.position)
    for each in (own, nothing):
        await each.aclose()


async def test_a_watch_resumes_after_any_position(organization: Organization) -> None:
    await organization.commit(0, 1)
    every = [entry.event for entry in await _log(organization)]
    running = await organization.begun()
    for tail in (True, False):
        for number, event in enumerate(every):
            watching = organization.watch(after=event.position)
            left = len(every) - number - 1
            assert await events(watching, left) == [
                (each.workspace_id, each.seq) for each in every[number + 1 :]
            ]
            await watching.aclose()
        if tail:
            # Without another watcher, each watch begins a tail of its own.
            await running.aclose()


async def _log(organization: Organization) -> Sequence[LogEntry]:
    store = organization.world.store
    entries, _ = await store.list_log_events([LogScope(ORG)], 0, store.position, 1_000)
    return entries


async def test_a_slow_watcher_reads_what_it_has_missed_in_batches_and_delays_nobody(
    organization: Organization,
) -> None:
    workspace = organization.busy[0][0].id
    slow, fast = await organization.begun(), await organization.begun()
    await organization.commit(0, 1)
    for each in (slow, fast):
        assert await events(each, 1) == [(workspace, 3)]
    count = 2 * BATCH_EVENTS
    for number in range(2, count + 2):
        await organization.commit(0, number)
        assert await events(fast, 1) == [(workspace, number + 2)]
    before = len(organization.reads)
    assert await events(slow, count) == [(workspace, seq) for seq in range(4, count + 4)]
    # The slow watcher had one batch, of one event.
    assert 2 <= len(organization.reads) - before <= 6
    for each in (slow, fast):
        await each.aclose()


async def test_a_watch_that_begins_during_a_read_misses_nothing(
    organization: Organization,
) -> None:
    """The tail reads for the scopes that are watched when the read begins."""
    first = await organization.begun()
    begun: list[Watching] = []

    async def begin_another() -> None:
        if not begun:
            begun.append(organization.watch(by=OWN))
            heartbeat = await anext(begun[0])
            # The event that is being read is after the beginning of this watch.
            assert heartbeat.position < organization.world.store.position

    organization.before_read = begin_another  # type: ignore[method-assign]
    await organization.commit(1, 1)
    expected = [(organization.busy[1][0].id, 3)]
    assert await events(first, 1) == expected
    assert await events(begun[0], 1) == expected
    for each in (first, *begun):
        await each.aclose()


async def test_a_quiet_watch_has_heartbeats_with_the_position_of_the_log(
    organization: Organization,
) -> None:
    world = organization.world
    foreign, running = await world.add_busy(org_id="org_b")
    watching = await organization.begun()
    for number in range(1, 3):
        await world.commit(foreign.id, running.id, iteration(number))
        received = asyncio.ensure_future(anext(watching))
        world.clock.advance(3.9)
        await organization.tail_has_read()
        assert not received.done()
        world.clock.advance(0.1)
        beat = await received
        assert beat == Heartbeat(world.clock(), world.store.position)
    await watching.aclose()


async def test_a_heartbeat_is_never_behind_the_position_of_the_caller(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have read more of the log."""
    world = organization.world
    end = await world.store.find_log_end()
    await organization.commit(0, 1)

    async def find_end() -> MemoryLogEnd:
        return end

    async def advance(_: MemoryLogEnd) -> bool:
        return True

    monkeypatch.setattr(world.store, "find_log_end", find_end)
    monkeypatch.setattr(MemoryLogEnd, "advance", advance)
    watching = organization.watch(after=world.store.position)
    received = asyncio.ensure_future(anext(watching))
    # The watcher has joined once the tail has its feed.
    await eventually_async(lambda: organization.feeds._tail is not None)
    world.clock.advance(4)
    assert await received == Heartbeat(world.clock(), world.store.position)
    await watching.aclose()


async def test_a_position_that_is_too_old_or_beyond_the_log_is_refused(
    organization: Organization,
) -> None:
    store = organization.world.store
    store.position += MAX_POSITIONS_BEHIND
    oldest = store.position - MAX_POSITIONS_BEHIND
    for after, reason in (
        (oldest - 1, "more than 100,000 positions before the end"),
        (store.position + 1, f"the log ends with position {store.position}"),
        (2**63 - 1, "the log ends"),
        (-1, "must be"),
    ):
        with pytest.raises(Failure) as raised:
            await anext(organization.watch(after, opening=["opened"]))
        assert raised.value.slug == "validation_error"
        problem = raised.value.details["fields"]["after"]
        assert reason in problem
        assert after < 0 or problem.endswith(
            "List the workspaces again, and begin without `after`."
        )
    for after in (oldest, store.position):
        watching = organization.watch(after, opening=["opened"])
        assert await anext(watching) == "opened"
        await watching.aclose()
    assert not organization.feeds._tail


async def test_the_scope_is_checked_before_the_first_message(organization: Organization) -> None:
    with pytest.raises(Failure) as raised:
        await anext(organization.watch(by=caller("tasks:write"), opening=["opened"]))
    assert raised.value.slug == "permission_denied"


async def test_a_draining_server_ends_the_watches_and_names_the_position(
    organization: Organization,
) -> None:
    world = organization.world
    watching = [await organization.begun(), await organization.begun(by=OWN)]
    world.subscriptions.drain()
    for each in watching:
        # After a first message, the failure can be reported within the stream.
        assert await anext(each) == Heartbeat(world.clock(), world.store.position)
        with pytest.raises(Failure, match=f"after={world.store.position}") as raised:
            await anext(each)
        assert (raised.value.slug, raised.value.details["retry_after_seconds"]) == (
            "unavailable",
            1,
        )


async def test_failed_reads_end_the_watches_and_the_next_one_begins_again(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, workspace = organization.world.store, organization.busy[0][0].id
    watching = await organization.begun()
    advance = MemoryLogEnd.advance
    failures = iter([True, True, False])

    async def fail_twice(end: MemoryLogEnd) -> bool:
        if next(failures, False):
            raise UnavailableError
        return await advance(end)

    monkeypatch.setattr(MemoryLogEnd, "advance", fail_twice)
    await organization.commit(0, 1)
    assert await events(watching, 1) == [(workspace, 3)]
    failures = itertools.repeat(True)
    with pytest.raises(UnavailableError):
        await anext(watching)
    failures = iter([])
    store.unavailable = True
    with pytest.raises(UnavailableError):
        await anext(organization.watch())
    store.unavailable = False
    again = await organization.begun()
    await organization.commit(0, 2)
    assert await events(again, 1) == [(workspace, 4)]
    await again.aclose()


async def test_the_last_watcher_ends_the_tail(organization: Organization) -> None:
    watching = [await organization.begun(by=by) for by in (caller(), OWN, caller())]
    for each in watching:
        assert organization.world.subscriptions.has_subscribers(None)
        await each.aclose()
    await eventually_async(lambda: not organization.world.subscriptions.has_subscribers(None))
    assert organization.feeds._tail is None


async def test_a_watch_that_is_cancelled_while_the_tail_begins_leaves_nothing(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def find_end() -> Any:
        return await never

    monkeypatch.setattr(organization.world.store, "find_log_end", find_end)
    received = asyncio.ensure_future(anext(organization.watch()))
    await eventually_async(lambda: organization.feeds._tail is not None)
    received.cancel()
    await asyncio.gather(received, return_exceptions=True)
    assert organization.feeds._tail is None
    never.cancel()


async def test_a_heartbeat_that_is_due_does_not_hide_what_a_watch_has_missed(
    organization: Organization,
) -> None:
    """The watch begins during a slow read, so it must read the event from the log."""
    begun: list[asyncio.Future[Any]] = []
    first = await organization.begun()
    watching = organization.watch(by=OWN)

    async def begin_another() -> None:
        if not begun:
            begun.append(asyncio.ensure_future(anext(watching)))
            await eventually_async(lambda: begun[0].done())
            begun.append(asyncio.ensure_future(anext(watching)))
            await asyncio.sleep(0)
            organization.world.clock.advance(HEARTBEAT_SECONDS)
            # No other feed lets the watch run before the heartbeat is sent.
            await first.aclose()

    organization.before_read = begin_another  # type: ignore[method-assign]
    await organization.commit(1, 1)
    await eventually_async(lambda: len(begun) == 2)
    event = await begun[1]
    assert (event.workspace_id, event.seq) == (organization.busy[1][0].id, 3)
    await watching.aclose()


async def test_a_watch_that_reads_a_long_part_without_events_says_how_far_it_has_come(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = organization.world
    begin = world.store.position
    monkeypatch.setattr(world.store, "list_log_events", _few_positions(world.store.list_log_events))
    foreign, running = await world.add_busy(org_id="org_b")
    await world.commit(foreign.id, running.id, *map(iteration, range(1, 100)))
    await organization.commit(0, 1)
    watching = organization.watch(after=begin, opening=["opened"])
    found = [await anext(watching) for _ in range(3)]
    # 20 reads of two positions each.
    assert found == ["opened", *(Heartbeat(world.clock(), begin + n) for n in (40, 80))]
    assert await events(watching, 1) == [(organization.busy[0][0].id, 3)]
    await watching.aclose()


def _few_positions(read: Any) -> Any:
    async def read_two(scopes: Any, after: int, until: int, limit: int, **options: Any) -> Any:
        return await read(scopes, after, min(until, after + 2), limit, **options)

    return read_two
