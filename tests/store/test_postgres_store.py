"""What only the real database can show: its own guards, locks and failures."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from server.core import deadline, lifecycle
from server.core.errors import UnavailableError
from server.core.lifecycle import Iterated, Started
from server.core.task import TaskStatus
from server.core.workspace import WorkspaceStatus
from server.store.pool import Pool, answered_within, connected, open_pool
from server.store.postgres_store import PostgresStore
from tests.store.examples import NOW, complete, intent, permission, set_status, task, with_task, workspace

_INSERT_EVENT = "INSERT INTO events VALUES (%s, %s, %s, now(), %s, NULL, %s)"


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Returns once it holds. Raises TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def held(url: str, workspace_id: str) -> AsyncIterator[Callable[[int], Coroutine[Any, Any, None]]]:
    """The workspace's row is locked; gives a wait for so many others to queue up behind the lock."""
    async with (
        await AsyncConnection.connect(url) as holder,
        await AsyncConnection.connect(url, autocommit=True) as observer,
    ):
        await holder.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", (workspace_id,))

        async def queued(count: int) -> None:
            async def reached() -> bool:
                query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                row = await (await observer.execute(query)).fetchone()
                return row is not None and row[0] >= count

            await until(reached)

        yield queued


async def test_of_many_on_two_replicas_one_records(database_url: str) -> None:
    async with open_pool(database_url) as one, open_pool(database_url) as other:
        stores = [PostgresStore(one), PostgresStore(other)]
        busy, _ = await with_task(stores[0])
        calls = [
            stores[at % 2].record_cancellation(permission(), busy.id, None, intent(request_id=f"req_{at}")) for at in range(50)
        ]
        found = await asyncio.gather(*calls)
        assert [each.recorded for each in found].count(True) == 1
        assert [event.type for event in await stores[0].list_events(busy.id, 0, 10)] == ["task_submitted", "task_cancel_requested"]


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancellation_that_meets_the_end(database_url: str, pool: Pool, cancel_first: bool) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)

    async def cancel() -> bool:
        return (await store.record_cancellation(permission(), busy.id, submitted.id, intent())).recorded

    async with held(database_url, busy.id) as queued:
        if cancel_first:
            cancelling = asyncio.create_task(cancel())
            await queued(1)
        completing = asyncio.create_task(complete(store, busy, submitted.id))
        await queued(2 if cancel_first else 1)
        if not cancel_first:
            cancelling = asyncio.create_task(cancel())
            await queued(2)
    recorded, _ = await asyncio.gather(cancelling, completing)
    ended = await store.get_task(busy.id, submitted.id)
    assert ended is not None
    assert (recorded, ended.status) == ((True, TaskStatus.CANCELLED) if cancel_first else (False, TaskStatus.COMPLETED))
    types = [event.type for event in await store.list_events(busy.id, 0, 10)]
    assert types == ["task_submitted", *(["task_cancel_requested"] if cancel_first else []), "task_completed"]


@pytest.mark.parametrize("type_", ["task_completed", "task_cancel_requested", "iteration_completed"])
async def test_the_database_refuses_a_second_one(pool: Pool, type_: str) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)
    async with pool.connection() as connection:
        await connection.execute(_INSERT_EVENT, (busy.id, 2, type_, submitted.id, '{"number": 1}'))
        with pytest.raises(psycopg.errors.UniqueViolation):
            await connection.execute(_INSERT_EVENT, (busy.id, 3, type_, submitted.id, '{"number": 1}'))


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE tasks SET status = 'completed', completed_at = now()", psycopg.errors.CheckViolation),
        ("UPDATE tasks SET status = 'cancelled'", psycopg.errors.CheckViolation),
        ("UPDATE tasks SET cancel_reason = NULL", psycopg.errors.CheckViolation),
        ("UPDATE tasks SET status = 'unheard_of'", psycopg.errors.CheckViolation),
        ("UPDATE workspaces SET status = 'unheard_of'", psycopg.errors.CheckViolation),
        ("UPDATE events SET type = 'unheard_of'", psycopg.errors.CheckViolation),
        ('INSERT INTO tasks SELECT (jsonb_populate_record(t, \'{"id": "x"}\')).* FROM tasks t', psycopg.errors.UniqueViolation),
    ],
)
async def test_the_database_refuses_what_must_not_be(pool: Pool, statement: str, error: type[Exception]) -> None:
    store = PostgresStore(pool)
    busy, _ = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    async with pool.connection() as connection:
        with pytest.raises(error):
            await connection.execute(statement)


async def test_what_cannot_be_stored_is_replaced(pool: Pool) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)
    output = "a\0b\\u0000\ud800ü"
    payload = {"number": 1, "model_call": {}, "tool_call": {"name": "shell", "result": {"output": output}}}
    events: list[lifecycle.AgentEvent] = [Started(), Iterated(1, payload)]
    await store.transition(busy.id, lambda session: lifecycle.commit(session, 1, submitted.id, events, NOW))
    stored = await store.get_task(busy.id, submitted.id)
    assert stored is not None and stored.result == "a\ufffdb\\u0000?ü"
    (event,) = await store.list_events(busy.id, 2, 1)
    assert event.payload["tool_call"]["result"]["output"] == "a\ufffdb\\u0000?ü"


async def test_what_is_committed_is_announced(pool: Pool) -> None:
    announced: list[str] = []
    store = PostgresStore(pool, announced.append)
    busy, _ = await with_task(store)
    assert announced == [busy.id] * 2
    await store.transition(busy.id, lifecycle.unchanged)
    await store.record_cancellation(permission(org_id="org_b"), busy.id, None, intent())
    assert announced == [busy.id] * 2
    await store.record_cancellation(permission(), busy.id, None, intent())
    await store.record_cancellation(permission(), busy.id, None, intent())
    assert announced == [busy.id] * 3
    await store.record_cancellation(permission(), busy.id, None, intent(force_after_seconds=1))
    assert announced == [busy.id] * 4


async def test_without_a_server_everything_is_unavailable() -> None:
    async with open_pool("postgresql:///nowhere?host=/nonexistent", acquire_timeout_seconds=0.1) as pool:
        store = PostgresStore(pool)
        calls: list[Coroutine[Any, Any, Any]] = [
            store.record_cancellation(permission(), "ws_1", None, intent()),
            store.transition("ws_1", lifecycle.unchanged),
            store.create_workspace(workspace()),
            store.get_workspace("ws_1"),
            store.list_workspaces(permission(), None, 1),
            store.get_task("ws_1", "task_1"),
            store.list_tasks("ws_1", None, 1),
            store.list_events("ws_1", 0, 1),
            store.list_wanted_pods(),
            store.list_cancellations(),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * len(calls)


async def ping(pool: Pool) -> None:
    async with connected(pool) as connection:
        await connection.execute("SELECT 1")


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_server_that_never_answers_is_unavailable(pool: Pool, pipelined: bool) -> None:
    """The server is at it for longer than it is waited for, as one that is frozen would be."""

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
async def test_a_frozen_server_is_unavailable_within_the_callers_time(database_url: str, what: str) -> None:
    async with open_pool(database_url, min_size=1, max_size=1) as pool:
        await pool.wait()
        store = PostgresStore(pool)
        pids = await _pids_of(database_url, what)
        if what == "postmaster":
            # So that a new session is needed.
            await _end_sessions(database_url, "application_name = 'evershell'")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            deadline.begin(0.6)
            async with asyncio.timeout(10):
                began = time.monotonic()
                with pytest.raises(UnavailableError):
                    await store.get_workspace("ws_1")
                assert time.monotonic() - began < 0.6
        finally:
            deadline.begin(None)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        async def answers() -> bool:
            with suppress(UnavailableError):
                return await store.get_workspace("ws_1") is None
            return False

        await until(answers)


async def _pids_of(url: str, what: str) -> list[int]:
    async with await AsyncConnection.connect(url) as connection:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'evershell'"
            if what == "sessions"
            else "SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)::int"
        )
        return [row[0] for row in await (await connection.execute(query)).fetchall()]


async def test_a_closed_pool_is_unavailable(database_url: str) -> None:
    async with open_pool(database_url) as pool:
        await ping(pool)
    with pytest.raises(UnavailableError):
        await ping(pool)


async def test_a_session_that_is_ended_under_way_is_unavailable(database_url: str, pool: Pool) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)
    async with held(database_url, busy.id) as queued:
        calls = [
            asyncio.create_task(complete(store, busy, submitted.id)),
            asyncio.create_task(store.record_cancellation(permission(), busy.id, None, intent())),
        ]
        await queued(2)
        await _end_sessions(database_url, "wait_event_type = 'Lock'")
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 2
    assert await store.get_task(busy.id, submitted.id) == submitted


async def test_idle_connections_that_were_ended_are_not_handed_out(database_url: str) -> None:
    async with open_pool(database_url, min_size=4) as pool:
        await pool.wait()
        await _end_sessions(database_url, "application_name = 'evershell'")
        for _ in range(8):
            await ping(pool)


async def test_a_refused_write_rolls_all_of_it_back(pool: Pool) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)
    async with pool.connection() as connection:
        await connection.execute(_INSERT_EVENT, (busy.id, 9, "task_completed", submitted.id, "{}"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await complete(store, busy, submitted.id)
    assert await store.get_task(busy.id, submitted.id) == submitted
    assert await store.get_workspace(busy.id) == busy
    await set_status(store, busy.id, WorkspaceStatus.FAILED)


async def test_a_caller_that_goes_away_leaves_no_lock(database_url: str, pool: Pool) -> None:
    store = PostgresStore(pool)
    busy, submitted = await with_task(store)
    async with held(database_url, busy.id) as queued:
        waiting = asyncio.create_task(store.transition(busy.id, lifecycle.unchanged))
        await queued(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (await store.record_cancellation(permission(), busy.id, submitted.id, intent())).recorded
    await store.create_workspace(workspace())
    assert await store.get_task(busy.id, task(busy.id).id) is None


async def _end_sessions(url: str, which: str) -> None:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        await connection.execute(f"{query} AND pid <> pg_backend_pid() AND {which}")


@pytest.mark.parametrize("turns", range(1, 40, 3))
async def test_a_caller_that_goes_away_in_mid_transaction_leaves_a_connection_that_commits(database_url: str, turns: int) -> None:
    """Cancelled wherever it is: what is written next on the same connection is there for others to see."""
    async with open_pool(database_url, min_size=1, max_size=1) as pool, open_pool(database_url, min_size=1, max_size=1) as other:
        store = PostgresStore(pool)
        busy, running = await with_task(store)
        starting = asyncio.create_task(
            store.transition(busy.id, lambda session: lifecycle.commit(session, busy.epoch, running.id, [Started()], NOW))
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert (await store.record_cancellation(permission(), busy.id, None, intent())).recorded
        seen = await PostgresStore(other).get_task(busy.id, running.id)
        assert seen is not None and seen.cancel is not None


async def test_a_commit_whose_caller_has_gone_wakes_those_who_wait(database_url: str) -> None:
    announced: list[str] = []
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, announced.append)
        busy, running = await with_task(store)
        announced.clear()
        async with held(database_url, busy.id) as queued:
            starting = asyncio.create_task(
                store.transition(busy.id, lambda session: lifecycle.commit(session, busy.epoch, running.id, [Started()], NOW))
            )
            await queued(1)
            starting.cancel()
            await asyncio.wait({starting})
        # Whether it was committed is not known.
        assert announced == [busy.id]


async def test_a_crowd_of_watchers_leaves_connections_to_others(database_url: str) -> None:
    """The whole log is locked, so that every read of it waits; another workspace is read all the same."""
    async with open_pool(database_url, min_size=2, max_size=2) as pool, await AsyncConnection.connect(database_url) as holder:
        store = PostgresStore(pool)
        busy, _ = await with_task(store)
        await holder.execute("LOCK TABLE events")
        watching = [asyncio.create_task(store.list_events(busy.id, seq, 10)) for seq in range(20)]
        await asyncio.wait(watching, timeout=0.05)
        assert await store.get_workspace(busy.id) is not None
        await holder.rollback()
        assert [len(events) for events in await asyncio.gather(*watching)][:2] == [1, 0]
