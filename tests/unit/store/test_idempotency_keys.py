"""Idempotency keys in PostgreSQL: what waits, and what is removed."""

import asyncio
from datetime import timedelta

import pytest
from psycopg import AsyncConnection

from evershell.core.change import KEY_KEPT, KeyTakenError
from evershell.store.connections import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, first_call, workspace
from tests.support.store.locks import waiting_sessions

INSERT = (
    "INSERT INTO idempotency_keys "
    "SELECT 'org_a', 'key_' || n, '', %s, 'ws_1', '', '' FROM generate_series(1, %s) n"
)


async def count(connection: AsyncConnection) -> int:
    row = await (await connection.execute("SELECT count(*) FROM idempotency_keys")).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_second_call_waits_for_the_transaction_of_the_first(
    database_url: str, pool: Pool, *, is_committed: bool
) -> None:
    """If the first transaction is rolled back, for example by a crash, the second call is first."""
    store, added = PostgresStore(pool, machine_clock), workspace()
    async with (
        await AsyncConnection.connect(database_url) as first,
        waiting_sessions(database_url) as waiting,
    ):
        await first.execute(INSERT, (NOW, 1))
        second = asyncio.create_task(
            store.create_workspace(added, None, first_call("key_1", workspace_id=added.id))
        )
        await waiting(1)
        await (first.commit() if is_committed else first.rollback())
        if is_committed:
            with pytest.raises(KeyTakenError):
                await second
        else:
            await second
    assert (await store.get_workspace(added.id) is None) is is_committed


async def test_each_call_removes_up_to_two_expired_keys(database_url: str, pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(INSERT, (NOW, 5))
        just_before = NOW + KEY_KEPT - timedelta(microseconds=1)
        left = []
        for number, at in enumerate((just_before, *[NOW + KEY_KEPT] * 4)):
            added = workspace()
            await store.create_workspace(added, None, first_call(f"new_{number}", at))
            left.append(await count(connection))
    assert left == [6, 5, 4, 4, 5]


async def test_a_call_does_not_wait_for_another_that_removes_keys(
    database_url: str, pool: Pool
) -> None:
    store, added = PostgresStore(pool, machine_clock), workspace()
    async with (
        await AsyncConnection.connect(database_url, autocommit=True) as connection,
        await AsyncConnection.connect(database_url) as other,
    ):
        await connection.execute(INSERT, (NOW, 2))
        await other.execute("SELECT FROM idempotency_keys FOR UPDATE")
        await asyncio.wait_for(
            store.create_workspace(added, None, first_call("new", NOW + KEY_KEPT)), 10
        )
        assert await count(connection) == 3
