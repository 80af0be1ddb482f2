"""The connections of the pool: their order, and their reader in the event loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.store.connections import Connection, Pool
from tests.support.waiting import eventually_async, settle


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with await Connection.connect(database_url, autocommit=True) as opened:
        yield opened


async def answer(connection: AsyncConnection[Any]) -> Any:
    async with asyncio.timeout(30):
        return await (await connection.execute("SELECT 'an answer'")).fetchone()


async def sleeping(connection: Connection, database_url: str) -> "asyncio.Task[Any]":
    """A statement that has begun and does not end."""
    statement = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
    await eventually_async(lambda: is_sleeping(connection, database_url))
    return statement


async def is_sleeping(connection: Connection, database_url: str) -> bool:
    query = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
    pid = connection.info.backend_pid
    async with await AsyncConnection.connect(database_url) as observer:
        return await (await observer.execute(query, (pid,))).fetchone() == (True,)


async def end_session(connection: Connection, database_url: str) -> None:
    async with await AsyncConnection.connect(database_url, autocommit=True) as other:
        pid = connection.info.backend_pid
        await other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


async def test_the_connection_that_was_used_last_is_used_next(pool: Pool) -> None:
    connections = [await pool.getconn() for _ in range(5)]
    for each in connections:
        await pool.putconn(each)
    for _ in range(2):
        first, second = await pool.getconn(), await pool.getconn()
        assert [first, second] == connections[:-3:-1]
        await pool.putconn(second)
        await pool.putconn(first)


# Only the loop of asyncio says whether there was a reader.
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_connection_stays_registered_after_a_statement(connection: Connection) -> None:
    await answer(connection)
    assert asyncio.get_running_loop().remove_reader(connection.fileno())


async def test_a_statement_whose_caller_is_cancelled_ends_in_the_server(
    connection: Connection, database_url: str
) -> None:
    statement = await sleeping(connection, database_url)
    statement.cancel()
    with pytest.raises(asyncio.CancelledError):
        await statement
    assert not await is_sleeping(connection, database_url)
    assert await answer(connection) == ("an answer",)


@pytest.mark.parametrize("lost", ["by the server", "by a caller"])
async def test_a_lost_connection_fails_its_statement_and_frees_its_descriptor(
    connection: Connection, database_url: str, lost: str
) -> None:
    descriptor = connection.fileno()
    statement = await sleeping(connection, database_url)
    if lost == "by the server":
        await end_session(connection, database_url)
    else:
        await connection.close()
    async with asyncio.timeout(30):
        with pytest.raises(psycopg.OperationalError):
            await statement
    # The next connection gets the descriptor, unless something else of this process is faster.
    async with await Connection.connect(database_url) as following:
        assert following.fileno() == descriptor
        assert await answer(following) == ("an answer",)


# Only the loop of asyncio says whether there was a reader.
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_the_end_of_an_idle_session_does_not_keep_the_event_loop_busy(
    connection: Connection, database_url: str
) -> None:
    await answer(connection)
    await end_session(connection, database_url)
    await settle()
    assert not asyncio.get_running_loop().remove_reader(connection.fileno())
    with pytest.raises(psycopg.OperationalError):
        await answer(connection)


async def test_a_statement_that_does_not_fit_into_the_buffers_is_sent(
    connection: Connection,
) -> None:
    await answer(connection)
    text = "x" * 20_000_000
    async with asyncio.timeout(60):
        row = await (await connection.execute("SELECT %s::text", (text,))).fetchone()
    assert row == (text,)
    assert await answer(connection) == ("an answer",)
