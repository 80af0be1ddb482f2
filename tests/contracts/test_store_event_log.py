"""The contract of Store: the log of the events of all workspaces."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import UnavailableError
from evershell.core.event import Event, LogScope, workspace_event
from evershell.core.event import EventType as Type
from evershell.core.ports import Store
from evershell.core.workspace import WorkspaceStatus
from evershell.store import event_log
from evershell.store.events import MAX_BATCH_BYTES
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, ORG, USER, complete, set_status, with_task, workspace
from tests.support.waiting import eventually_async

EVERY = LogScope(ORG)


async def read(
    store: Store, *scopes: LogScope, after: int = 0, until: int | None = None, limit: int = 100
) -> list[Event]:
    """All events of the scopes, in the order in which the log has them."""
    until = (await store.find_log_end()).position if until is None else until
    found: list[Event] = []
    while after < until:
        entries, after = await store.list_log_events(scopes, after, until, limit)
        found += [entry.event for entry in entries]
    return found


async def add_events(store: Store, workspace_id: str, *texts: str) -> None:
    """Commits an event with a payload of each of these texts, in one transaction."""
    new = [workspace_event(Type.WORKSPACE_FAILED, NOW, reason=text) for text in texts]

    def decide(locked: Locked) -> Change:
        return replace(unchanged(locked), events=tuple(new))

    await store.transition(workspace_id, decide)


def places(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(each.workspace_id, each.seq) for each in events]


async def test_the_log_has_the_events_of_all_workspaces_in_order(store: Store) -> None:
    one, first = await with_task(store)
    two, second = await with_task(store)
    await complete(store, one, first.id)
    await complete(store, two, second.id)
    for limit in (1, 3, 100):
        events = await read(store, EVERY, limit=limit)
        assert places(events) == [(one.id, 1), (two.id, 1), (one.id, 2), (two.id, 2)]
    positions = [each.position for each in events]
    assert positions == sorted(set(positions))
    assert positions[-1] == await store.last_position() == (await store.find_log_end()).position
    assert events[::2] == await store.list_events(one.id, 0, 100)
    for number, after in enumerate(positions, 1):
        assert await read(store, EVERY, after=after) == events[number:]
        assert await read(store, EVERY, until=after) == events[:number]


async def test_a_scope_has_its_organization_or_the_workspaces_of_a_user(store: Store) -> None:
    # A read looks at a limited number of positions, and earlier tests have taken some.
    begin = await store.last_position()
    made = {
        (org_id, user_id): (await with_task(store, org_id=org_id, user_id=user_id))[0].id
        for org_id in (ORG, "org_b")
        for user_id in (USER, "user_2", None)
    }
    own, other = made[ORG, USER], made["org_b", "user_2"]
    of_org = [made[ORG, USER], made[ORG, "user_2"], made[ORG, None]]
    for scopes, expected in (
        ([EVERY], of_org),
        ([LogScope(ORG, USER)], [own]),
        ([LogScope(ORG, ""), LogScope("", None), LogScope(f"{ORG}\n", USER)], []),
        ([LogScope(ORG, USER), LogScope("org_b", "user_2")], [own, other]),
        ([LogScope(ORG, USER), EVERY], of_org),
    ):
        assert [each.workspace_id for each in await read(store, *scopes)] == expected
    entries, _ = await store.list_log_events([EVERY], begin, await store.last_position(), 100)
    assert [entry[1:] for entry in entries] == [(ORG, USER), (ORG, "user_2"), (ORG, None)]


async def test_a_log_without_events_has_a_position(store: Store) -> None:
    """So 0, which stands for the end of the log, is never a position to resume from."""
    assert await store.last_position() == (await store.find_log_end()).position >= 1
    created = workspace()
    await store.create_workspace(created)
    await add_events(store, created.id, "")
    (event,) = await read(store, EVERY)
    assert event.position > 1


async def test_what_was_removed_is_left_out(store: Store) -> None:
    kept, removed = (await with_task(store))[0], workspace()
    await store.create_workspace(removed)
    await add_events(store, removed.id, "")
    last = await store.last_position()
    await set_status(store, removed.id, WorkspaceStatus.DELETING)
    await store.remove_workspace(removed.id)
    busy, task = await with_task(store)
    await complete(store, busy, task.id)
    await store.remove_old_tasks(busy.id, NOW + timedelta(1), 0, 100)
    assert places(await read(store, EVERY)) == [(kept.id, 1)]
    assert await store.last_position() > last


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[PostgresStore]:
    async with open_pool(database_url) as pool:
        yield PostgresStore(pool, machine_clock)


@asynccontextmanager
async def open_event(url: str, workspace_id: str) -> AsyncIterator[AsyncConnection[Any]]:
    """Writes an event of the workspace in a transaction that stays open."""
    async with await AsyncConnection.connect(url) as connection:
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await connection.execute(
            "INSERT INTO events SELECT workspace_id, 100, type, time, task_id, NULL, NULL, payload,"
            " nextval('event_positions') FROM events WHERE workspace_id = %s AND seq = 1",
            (workspace_id,),
        )
        yield connection


async def test_an_event_that_is_committed_after_later_ones_is_not_skipped(
    postgres: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, _ = await with_task(postgres)
    end = await postgres.find_log_end()
    begun = end.position
    looks, look = [0], event_log._writers

    async def count_and_look(connection: Any) -> event_log._Writers:
        looks[0] += 1
        return await look(connection)

    async with open_event(database_url, slow.id) as connection:
        later, _ = await with_task(postgres)
        for _ in range(2):
            assert (await end.advance(), end.position) == (False, begun)
        monkeypatch.setattr(event_log, "_writers", count_and_look)
        # A reader that begins now would miss the event too, so its beginning waits.
        beginning = asyncio.create_task(postgres.find_log_end())
        await eventually_async(lambda: looks[0] >= 3)
        assert not beginning.done()
        await connection.commit()
    assert (await beginning).position == begun + 2
    await end.advance()
    assert (await end.advance(), end.position) == (True, begun + 2)
    events = await read(postgres, EVERY, after=begun, until=begun + 2)
    assert places(events) == [(slow.id, 100), (later.id, 1)]


async def test_a_position_that_was_rolled_back_delays_no_reader(
    postgres: PostgresStore, database_url: str
) -> None:
    slow, _ = await with_task(postgres)
    end = await postgres.find_log_end()
    settled = end.position
    async with open_event(database_url, slow.id) as connection:
        await connection.rollback()
    later, _ = await with_task(postgres)
    await end.advance()
    assert end.position == settled + 2
    events = await read(postgres, EVERY, after=settled, until=settled + 2)
    assert places(events) == [(later.id, 1)]


async def test_a_reader_does_not_begin_while_a_transaction_that_writes_events_stays_open(
    postgres: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, _ = await with_task(postgres)
    monkeypatch.setattr(event_log, "_BEGIN_SECONDS", 0.1)
    async with open_event(database_url, slow.id) as connection:
        with pytest.raises(UnavailableError, match="is open for long"):
            await postgres.find_log_end()
        await connection.rollback()
    await postgres.find_log_end()


async def test_a_reader_does_not_go_on_after_a_fail_over(postgres: PostgresStore) -> None:
    """The new server may have lost the last events, and may give their positions again."""
    end = await postgres.find_log_end()
    assert isinstance(end, event_log.LogEnd)
    end._server = NOW
    with pytest.raises(UnavailableError, match="has failed over"):
        await end.advance()


async def sizes(store: Store, begin: int) -> list[int]:
    """The numbers of events that reads of the events after `begin` return."""
    last, found = await store.last_position(), []
    while begin < last:
        entries, begin = await store.list_log_events([EVERY], begin, last, 100)
        found.append(len(entries))
    return found


async def test_a_read_is_bounded(postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    created, other = workspace(), workspace(org_id="org_b")
    for each in (created, other):
        await postgres.create_workspace(each)
    large = secrets.token_urlsafe(MAX_BATCH_BYTES)
    begin = await postgres.last_position()
    await add_events(postgres, created.id, large, "", large, "")
    assert await sizes(postgres, begin) == [1, 2, 1]
    # PostgreSQL compresses these payloads to about a 100th.
    begin = await postgres.last_position()
    await add_events(postgres, created.id, *["x" * 2**20] * 8)
    assert max(await sizes(postgres, begin)) <= 5
    last = await postgres.last_position()
    # A statement looks at a limited number of positions, whosever events they are.
    monkeypatch.setattr(event_log, "MAX_POSITIONS", 10)
    await add_events(postgres, other.id, *[""] * 25)
    end = await postgres.last_position()
    reached = [last]
    while reached[-1] < end:
        entries, at = await postgres.list_log_events([EVERY], reached[-1], end, 100)
        assert not entries
        reached.append(at)
    assert [each - last for each in reached] == [0, 10, 20, 25]
