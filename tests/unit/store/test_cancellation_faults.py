"""Cancellations that share a statement when a member, its caller or the connection fails."""

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.sql import SQL, Literal

from evershell.core.errors import UnavailableError
from evershell.core.ports import RecordedCancellation
from evershell.store.connections import Pool
from tests.support.store.published import Published
from tests.support.waiting import settle
from tests.unit.store.cancelling import CANCELLED_LOG, STATEMENTS_AT_ONCE, Cell

# Locks a workspace as soon as another session waits for the lock of a transaction. It does so in
# the server, well within the second after which that session looks for a deadlock.
LOCK_LATER = SQL("""
    DO $$ BEGIN
        WHILE NOT EXISTS (
            SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event = 'transactionid'
        ) LOOP
            PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
        END LOOP;
        PERFORM FROM workspaces WHERE id = {} FOR UPDATE;
    END $$
""")


@pytest.fixture
def cell(database_url: str, pool: Pool) -> Cell:
    return Cell(database_url, pool, Published())


async def test_a_member_that_cannot_be_stored_does_not_affect_the_others(cell: Cell) -> None:
    (first, one), (refused, two), (last, three), (conflict, _) = await cell.busy(4)
    insert = "INSERT INTO events VALUES (%s, 2, 'workspace_failed', now(), NULL, NULL, NULL, '{}')"
    async with await AsyncConnection.connect(cell.url, autocommit=True) as connection:
        await connection.execute(insert, (conflict.id,))
    async with cell.statements_in_flight():
        calls = [
            cell.cancel(first.id),
            cell.cancel(refused.id, reason="\0"),
            cell.cancel(conflict.id),
            cell.cancel(last.id),
        ]
    found = await asyncio.gather(*calls, return_exceptions=True)
    recorded = [isinstance(each, RecordedCancellation) and each.recorded for each in found]
    assert recorded == [True, False, False, True]
    assert isinstance(found[1], psycopg.DataError)
    assert isinstance(found[2], psycopg.errors.UniqueViolation)
    assert await cell.store.get_task(refused.id, two.id) == two
    for busy in (first, last):
        assert await cell.log(busy.id) == CANCELLED_LOG
    assert await cell.transactions([one.id, three.id]) == 2


async def test_a_deadlock_of_one_member_does_not_affect_the_others(cell: Cell) -> None:
    (first, one), (second, _), (other, _) = await cell.busy(3)
    async with await AsyncConnection.connect(cell.url) as stranger:
        # Not a transaction of this service, because it locks a task before its workspace.
        await stranger.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (one.id,))
        # The statement of the service looks for a deadlock, and fails.
        await stranger.execute("SET LOCAL deadlock_timeout = '60s'")
        async with cell.statements_in_flight() as holder:
            calls = [cell.cancel(each.id) for each in (second, first, other)]
            await settle()
            locking = asyncio.create_task(stranger.execute(LOCK_LATER.format(Literal(second.id))))
            await holder.rollback()
            await locking
        await stranger.rollback()
        found = await asyncio.gather(*calls)
    assert [each.recorded for each in found] == [True] * 3
    for busy in (first, second, other):
        assert await cell.log(busy.id) == CANCELLED_LOG


async def test_a_single_caller_who_leaves_is_published(cell: Cell) -> None:
    """It is unknown whether his intent was committed."""
    ((busy, _),) = await cell.busy(1)
    cell.published.clear()
    async with await AsyncConnection.connect(cell.url) as holder:
        await holder.execute("LOCK TABLE events IN SHARE MODE")
        call = cell.cancel(busy.id)
        await cell.waiting(1)
        call.cancel()
        await asyncio.wait({call})
    assert cell.published.ids == [busy.id]


async def test_a_broken_connection_is_unavailable_for_all_members(
    cell: Cell,
) -> None:
    busy = await cell.busy(3)
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE '%%record_cancellation%%' "
        "AND state = 'active' AND pid <> pg_backend_pid() ORDER BY query_start DESC LIMIT 1) latest"
    )
    async with cell.statements_in_flight():
        calls = [cell.cancel(each.id) for each, _ in busy]
        await cell.waiting(STATEMENTS_AT_ONCE + 1)
        assert await cell.query(terminate) == [(True,)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [UnavailableError] * 3
    for each, submitted in busy:
        assert await cell.store.get_task(each.id, submitted.id) == submitted
        assert (await cell.cancel(each.id)).recorded
