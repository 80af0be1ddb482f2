"""Tests the store with an unavailable, frozen or slow database, and with callers that disconnect.

The tests check the errors that callers receive and that no locks or sessions remain.
"""

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.core import deadline, task_lifecycle
from evershell.core.change import unchanged
from evershell.core.errors import UnavailableError
from evershell.core.task import TaskStarted
from evershell.store.connections import answered_within, conninfo
from evershell.store.pool import Pool, connected, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import (
    NOW,
    intent,
    permission,
    task,
    with_task,
    workspace,
)
from tests.support.store.locks import held
from tests.support.waiting import eventually_async


async def ping(pool: Pool) -> None:
    async with connected(pool) as connection:
        await connection.execute("SELECT 1")


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_server_that_never_answers_is_unavailable(pool: Pool, pipelined: bool) -> None:
    """The query takes longer than the timeout, as on a frozen server."""

    async def ask_too_much() -> None:
        async with connected(pool) as connection, AsyncExitStack() as stack:
            if pipelined:
                await stack.enter_async_context(connection.pipeline())
                await stack.enter_async_context(connection.transaction())
            with answered_within(connection, 0.05):
                await connection.execute("SELECT pg_sleep(60)")
                await connection.execute("SELECT 1")

    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            await ask_too_much()
        await ping(pool)


@pytest.mark.parametrize("what", ["postmaster", "sessions"])
async def test_a_frozen_server_is_unavailable_within_the_callers_time(
    database_url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the deadline of the caller bounds the waits.
    monkeypatch.setattr(Pool, "answer_seconds", 600.0)
    async with open_pool(
        database_url, min_size=1, max_size=1, acquire_timeout_seconds=600.0
    ) as pool:
        await pool.wait()
        store = PostgresStore(pool, machine_clock)
        pids = await _pids_of(database_url, what)
        if what == "postmaster":
            # Ending the sessions forces the pool to open a new one.
            await _end_sessions(database_url, "application_name = 'evershell'")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            deadline.begin(0.6)
            async with asyncio.timeout(30):
                with pytest.raises(UnavailableError):
                    await store.get_workspace("ws_1")
        finally:
            deadline.begin(None)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        async def answers() -> bool:
            with suppress(UnavailableError):
                return await store.get_workspace("ws_1") is None
            return False

        await eventually_async(answers)


async def _pids_of(url: str, what: str) -> list[int]:
    async with await AsyncConnection.connect(url) as connection:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'evershell'"
            " AND datname = current_database()"
            if what == "sessions"
            else "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)::int"
        )
        return [row[0] for row in await (await connection.execute(query)).fetchall()]


async def raise_in_server(pool: Pool, sqlstate: str, *, pipelined: bool) -> None:
    async with connected(pool) as connection, AsyncExitStack() as stack:
        if pipelined:
            await stack.enter_async_context(connection.pipeline())
            await stack.enter_async_context(connection.transaction())
        await connection.execute(
            f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$"
        )
        await connection.execute("SELECT 1")


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize(
    "sqlstate",
    [
        "53000",
        "53100",
        "53200",
        "53400",
        "55000",
        "57P02",
        "58000",
        "58030",
        "58P01",
        "XX000",
        "XX001",
        "XX002",
        "25P04",
    ],
)
async def test_what_the_server_cannot_do_is_unavailable(
    pool: Pool, sqlstate: str, pipelined: bool
) -> None:
    """The cases are disk errors, lack of memory, limits and internal errors of PostgreSQL."""
    with pytest.raises(UnavailableError):
        await raise_in_server(pool, sqlstate, pipelined=pipelined)
    await ping(pool)


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("sqlstate", ["22021", "23505", "25P02", "42501", "42601", "42P01"])
async def test_what_is_our_own_fault_is_not(pool: Pool, sqlstate: str, pipelined: bool) -> None:
    with pytest.raises(psycopg.Error):
        await raise_in_server(pool, sqlstate, pipelined=pipelined)
    await ping(pool)


async def test_idle_connections_that_were_ended_are_not_handed_out(database_url: str) -> None:
    async with open_pool(database_url, min_size=4) as pool:
        await pool.wait()
        await _end_sessions(database_url, "application_name = 'evershell'")
        for _ in range(8):
            await ping(pool)


async def test_a_caller_that_goes_away_leaves_no_lock(database_url: str, pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, submitted = await with_task(store)
    async with held(database_url, busy.id) as queued:
        waiting = asyncio.create_task(store.transition(busy.id, unchanged))
        await queued(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (await store.record_cancellation(permission(), busy.id, submitted.id, intent())).recorded
    await store.create_workspace(workspace())
    assert await store.get_task(busy.id, task(busy.id).id) is None


async def test_a_silent_client_does_not_keep_a_lock(database_url: str, pool: Pool) -> None:
    """The client may be frozen or cut off. A repeated call of another client gets the lock."""
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    silent = await AsyncConnection.connect(conninfo(database_url))
    try:
        await silent.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", (busy.id,))
        with suppress(UnavailableError):
            await store.transition(busy.id, unchanged)
        await store.transition(busy.id, unchanged)
    finally:
        await silent.close()


async def _end_sessions(url: str, which: str) -> None:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        query = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database()"
        )
        await connection.execute(f"{query} AND pid <> pg_backend_pid() AND {which}")


@pytest.mark.parametrize("turns", range(1, 40, 3))
async def test_a_caller_that_goes_away_in_mid_transaction_leaves_a_connection_that_commits(
    database_url: str, turns: int
) -> None:
    """An asyncio task is cancelled at different points of a transaction.

    The next write on the same connection must be visible to other connections.
    """
    async with (
        open_pool(database_url, min_size=1, max_size=1) as pool,
        open_pool(database_url, min_size=1, max_size=1) as other,
    ):
        store = PostgresStore(pool, machine_clock)
        busy, running = await with_task(store)
        starting = asyncio.create_task(
            store.transition(
                busy.id,
                lambda locked: task_lifecycle.commit(
                    locked, busy.epoch, running.id, [TaskStarted()], NOW
                ),
            )
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert (await store.record_cancellation(permission(), busy.id, None, intent())).recorded
        seen = await PostgresStore(other, machine_clock).get_task(busy.id, running.id)
        assert seen is not None and seen.cancel is not None
