"""Programs wait until the schema is current."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evershell.store import schema
from evershell.store.connections import Pool, open_pool
from evershell.store.migrate import migrate
from evershell.store.schema import await_schema

LIMIT_SECONDS = 10.0


@pytest.fixture
async def role_url(empty_database_url: str) -> AsyncIterator[str]:
    """The database as a role that owns no table."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE schema_reader LOGIN")
    yield make_conninfo(empty_database_url, user="schema_reader")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY schema_reader")
        connection.execute("DROP ROLE schema_reader")


async def test_the_service_role_sees_that_the_schema_becomes_current(
    empty_database_url: str, role_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_RETRY_SECONDS", 0.01)
    looked: asyncio.Queue[set[str]] = asyncio.Queue()
    look = schema._applied

    async def look_and_record(pool: Pool) -> set[str]:
        found = await look(pool)
        looked.put_nowait(found)
        return found

    monkeypatch.setattr(schema, "_applied", look_and_record)
    async with open_pool(role_url, min_size=1, max_size=1) as pool:
        waiting = asyncio.create_task(await_schema(pool))
        assert await looked.get() == set()
        await asyncio.to_thread(migrate, empty_database_url)
        while not looked.empty():
            looked.get_nowait()
        # The migrations did not name this role.
        assert await looked.get() == set()
        assert not waiting.done()
        await asyncio.to_thread(migrate, empty_database_url, role_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await waiting


async def test_a_missing_function_is_waited_for(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version may add a function without a migration."""
    monkeypatch.setattr(schema, "_RETRY_SECONDS", 0.01)
    await asyncio.to_thread(migrate, empty_database_url)
    async with open_pool(empty_database_url, min_size=1, max_size=1) as pool:
        async with pool.connection() as connection:
            await connection.execute("ALTER FUNCTION renew_leases RENAME TO another")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await await_schema(pool)
        await asyncio.to_thread(migrate, empty_database_url)
        async with asyncio.timeout(LIMIT_SECONDS):
            await await_schema(pool)
