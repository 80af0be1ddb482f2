"""Leases on PostgreSQL: its clock, its locks, and updates in place."""

import asyncio
from dataclasses import replace

from psycopg import AsyncConnection

from evershell.core.change import unchanged
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import Phase
from evershell.store.connections import Pool, connected
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, with_task, workspace
from tests.support.store.locks import held

LEASE_SECONDS = 30.0


async def leased(store: PostgresStore, seconds: float = LEASE_SECONDS) -> str:
    idle = workspace()
    await store.create_workspace(idle)
    await store.transition(
        idle.id, lambda locked: replace(unchanged(locked), lease_seconds=seconds)
    )
    return idle.id


async def test_the_clock_of_the_database_decides(database_url: str, pool: Pool) -> None:
    """The clock of the worker stands still in the past."""
    store = PostgresStore(pool, machine_clock)
    runtime = Runtime(store, lambda: NOW, LEASE_SECONDS)
    workspace_id = await leased(store)
    await runtime.register(AgentIdentity(workspace_id, 1), "127.0.0.1:1")
    await expire(database_url, workspace_id, seconds_left=5)
    found = await runtime.heartbeat(AgentIdentity(workspace_id, 1), "", Phase.NONE)
    assert found.lease_seconds == LEASE_SECONDS
    left = await store.lease_seconds_left(workspace_id)
    # It had 5 s left before.
    assert left is not None and 5 < left <= LEASE_SECONDS
    assert await store.list_expired_leases() == []
    await expire(database_url, workspace_id, seconds_left=-0.001)
    assert [each.id for each in await store.list_expired_leases()] == [workspace_id]


async def test_a_locked_workspace_delays_no_heartbeat(database_url: str, pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    locked, other = await leased(store, 20), await leased(store, 20)
    async with held(database_url, locked):
        found = await asyncio.wait_for(
            asyncio.gather(
                *(store.renew_lease(each, 1, LEASE_SECONDS) for each in (locked, other))
            ),
            10,
        )
    lefts = [each.lease_seconds for each in found if each is not None]
    assert lefts[0] < 20 and lefts[1] == LEASE_SECONDS


async def test_a_heartbeat_waits_for_the_lock_before_the_lease_runs_out(
    database_url: str, pool: Pool
) -> None:
    store = PostgresStore(pool, machine_clock)
    workspace_id = await leased(store, LEASE_SECONDS / 2 - 1)
    runtime = Runtime(store, lambda: NOW, LEASE_SECONDS)
    async with held(database_url, workspace_id) as queued:
        beat = asyncio.create_task(
            runtime.heartbeat(AgentIdentity(workspace_id, 1), "", Phase.NONE)
        )
        await queued(1)
    assert (await beat).lease_seconds == LEASE_SECONDS


async def test_a_renewal_updates_the_row_in_place(database_url: str, pool: Pool) -> None:
    """HOT: no index has an entry to change."""
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    await store.transition(
        busy.id, lambda locked: replace(unchanged(locked), lease_seconds=LEASE_SECONDS)
    )
    async with connected(pool) as connection:
        await connection.execute("SELECT pg_stat_reset()")
    for _ in range(10):
        await expire(database_url, busy.id, seconds_left=5)
        await store.renew_lease(busy.id, 1, LEASE_SECONDS)
    async with connected(pool) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        cursor = await connection.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'workspaces'"
        )
        updated, in_place = await cursor.fetchone() or (0, 0)
    assert updated == in_place > 0


async def expire(database_url: str, workspace_id: str, seconds_left: float) -> None:
    """Sets what is left of the lease."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE workspaces SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s",
            (seconds_left, workspace_id),
        )
