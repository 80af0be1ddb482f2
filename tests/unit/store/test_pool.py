"""How calls get connections from the pool: in which order, and how many."""

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.core.caller import calling_org
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.validation import Listed
from evershell.store.pool import (
    _LIST_WAIT_SECONDS,
    Pool,
    Share,
    connected,
    fetch_all,
    open_pool,
)
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import intent, permission, with_task
from tests.support.store.locks import waiting_sessions
from tests.support.store.trees import submit
from tests.support.waiting import eventually_async, settle

_SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event = 'PgSleep'"
)


async def test_the_connection_that_was_used_last_is_used_next(pool: Pool) -> None:
    connections = [await pool.getconn() for _ in range(5)]
    for each in connections:
        await pool.putconn(each)
    for _ in range(2):
        first, second = await pool.getconn(), await pool.getconn()
        assert [first, second] == connections[:-3:-1]
        await pool.putconn(second)
        await pool.putconn(first)


async def test_every_share_leaves_connections_for_cancellations(pool: Pool) -> None:
    waiting = pool.locks.size + pool.others.size
    assert pool.max_size - waiting >= 2, "as many as a group commit uses"
    assert pool.lists.size + pool.trees.size < pool.others.size
    assert pool.bulk.size < pool.locks.size


@pytest.fixture
async def locked_creators(database_url: str) -> AsyncIterator[None]:
    """Locks a table, so that audit lists of the caller's own workspaces wait."""
    async with await AsyncConnection.connect(database_url) as holder:
        await holder.execute("LOCK TABLE deleted_workspaces")
        yield


async def test_no_cancellation_waits_for_lists(
    pool: Pool, database_url: str, locked_creators: None
) -> None:
    """There are ten times as many lists as connections."""
    store = PostgresStore(pool, machine_clock)
    busy, task = await with_task(store)
    own = permission(own_only=True)

    def read(count: int) -> list[asyncio.Task[Listed[AuditEntry]]]:
        called = (store.list_audit_entries(own, AuditFilter(), None, 1) for _ in range(count))
        return [asyncio.create_task(each) for each in called]

    first = read(pool.lists.size)
    async with waiting_sessions(database_url) as waiting:
        await waiting(pool.lists.size)
    others = read(10 * pool.max_size)
    await settle()
    recorded = await store.record_cancellation(own, busy.id, None, intent())
    _, read_again = await store.get_workspace_with_task(busy.id, task.id)
    await submit(store)
    assert recorded.outcome == "accepted" and read_again is not None and read_again.cancel
    # The first lists wait for the table, and are ended. The others get no place in time, and are
    # refused.
    ended = await asyncio.gather(*others, *first, return_exceptions=True)
    slugs = [each.slug if isinstance(each, Failure) else type(each) for each in ended]
    assert slugs == ["rate_limited"] * len(others) + [UnavailableError] * len(first)


async def test_lists_leave_the_database_to_others_half_of_the_time(pool: Pool) -> None:
    """After each list, its place stays unused for as long as the list took."""
    loop = asyncio.get_running_loop()
    began, count = loop.time(), 20 * pool.lists.size
    for _ in range(count):
        await fetch_all(pool.lists, "SELECT pg_sleep(0.02)")
    places_seconds = (loop.time() - began) * pool.lists.size
    assert places_seconds > 2 * 0.02 * (count - pool.lists.size)


async def test_organizations_take_turns_in_lists(pool: Pool) -> None:
    """A list waits for one list of each other organization, not for all of their lists."""
    served: list[str] = []

    async def read(org_id: str) -> None:
        calling_org.set(org_id)
        await fetch_all(pool.lists, "SELECT pg_sleep(0.005)")
        served.append(org_id)

    busy = [asyncio.create_task(read(org_id)) for org_id in 20 * ["org_a", "org_b"]]
    await settle()
    await read("org_c")
    assert len(served) <= 2 * (pool.lists.size + 1) + 1
    await asyncio.gather(*busy, return_exceptions=True)


async def test_an_organization_with_its_part_of_the_places_is_refused(database_url: str) -> None:
    """Half of the places stay free for the lists of others."""
    async with open_pool(database_url, max_size=32) as pool:
        calling_org.set("org_a")
        held = [await pool.lists.getconn(5) for _ in range(pool.lists.size // 2)]
        with pytest.raises(Failure) as refused:
            await pool.lists.getconn(5)
        assert refused.value.slug == "rate_limited"
        calling_org.set("org_b")
        held += [await pool.lists.getconn(5) for _ in range(pool.lists.size // 2)]
        for each in held:
            await pool.lists.putconn(each)


async def test_a_list_without_a_connection_is_unavailable(pool: Pool) -> None:
    """Other calls use all the connections that lists could get."""
    others = [await pool.others.getconn(5) for _ in range(pool.others.size)]
    reading = [
        asyncio.create_task(fetch_all(pool.lists, "SELECT 1")) for _ in range(pool.lists.size + 1)
    ]
    ended = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(each) for each in ended} == {UnavailableError}
    for each in others:
        await pool.others.putconn(each)


async def test_a_list_gets_a_place_that_was_freed_while_the_process_paused(pool: Pool) -> None:
    held = [await pool.lists.getconn(5) for _ in range(max(1, pool.lists.size // 2))]
    waiting = asyncio.create_task(pool.lists.getconn(5))
    await settle()
    await pool.lists.putconn(held.pop())
    time.sleep(_LIST_WAIT_SECONDS)  # noqa: ASYNC251 - stops the event loop
    held.append(await waiting)
    for each in held:
        await pool.lists.putconn(each)


async def test_a_call_with_two_slow_lists_does_not_refuse_itself(pool: Pool) -> None:
    for _ in range(2):
        await fetch_all(pool.lists, "SELECT pg_sleep(0.3)")


async def test_statements_that_do_not_end_are_ended_and_no_cancellation_waits(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statements use all connections except the ones that are kept for cancellations."""
    monkeypatch.setattr(pool.others, "answer_seconds", 2.0)
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store, org_id="org_b")
    sleeping = [asyncio.create_task(_sleep(pool.others)) for _ in range(3 * pool.max_size)]
    async with await AsyncConnection.connect(database_url, autocommit=True) as observer:

        async def are_sleeping(count: int) -> bool:
            row = await (await observer.execute(_SLEEPING)).fetchone()
            return row == (count,)

        await eventually_async(lambda: are_sleeping(pool.others.size))
        by = permission(org_id="org_b")
        recorded = await store.record_cancellation(by, busy.id, None, intent())
        assert recorded.outcome == "accepted"
        ended = await asyncio.gather(*sleeping, return_exceptions=True)
        assert {type(each) for each in ended} == {UnavailableError}
        await eventually_async(lambda: are_sleeping(0))


async def test_a_share_is_whole_after_cancelled_and_failed_statements(pool: Pool) -> None:
    async def fail() -> None:
        async with connected(pool.trees) as connection:
            await connection.execute("SELECT 1 / 0")

    for _ in range(2 * pool.trees.size):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await fail()
        sleeping = asyncio.create_task(_sleep(pool.trees))
        await settle()
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
    connections = [await pool.trees.getconn(5) for _ in range(pool.trees.size)]
    with pytest.raises(psycopg.OperationalError):
        await pool.trees.getconn(0.01)
    for each in connections:
        await pool.trees.putconn(each)


async def _sleep(share: Share) -> None:
    async with connected(share) as connection:
        await connection.execute("SELECT pg_sleep(60)")
