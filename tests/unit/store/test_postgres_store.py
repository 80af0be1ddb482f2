"""The store on PostgreSQL: constraints, locks, connections, leases and idempotency keys."""

import asyncio
import secrets
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.core import task_lifecycle
from evershell.core.change import KEY_KEPT, Change, KeyTakenError, Locked, unchanged
from evershell.core.due import Kind
from evershell.core.event import EventType
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    OpenIteration,
    Phase,
    TaskStarted,
    TaskStatus,
    Usage,
)
from evershell.store import events
from evershell.store.pool import Pool, connected, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.due import due_ids
from tests.support.store.examples import (
    NOW,
    complete,
    first_call,
    intent,
    permission,
    with_task,
    workspace,
)
from tests.support.store.locks import held, waiting_sessions
from tests.support.store.published import Published
from tests.support.world import iteration

_INSERT_EVENT = "INSERT INTO events VALUES (%s, %s, %s, now(), %s, NULL, NULL, %s)"


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancellation_and_an_end_take_effect_in_the_order_of_their_locks(
    database_url: str, pool: Pool, cancel_first: bool
) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, submitted = await with_task(store)

    async def cancel() -> bool:
        return (
            await store.record_cancellation(permission(), busy.id, submitted.id, intent())
        ).recorded

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
    assert (recorded, ended.status) == (
        (True, TaskStatus.CANCELLED) if cancel_first else (False, TaskStatus.COMPLETED)
    )
    types = [event.type for event in await store.list_events(busy.id, 0, 10)]
    assert types == [
        "task_submitted",
        *(["task_cancel_requested"] if cancel_first else []),
        "task_completed",
    ]


async def test_a_batch_of_large_events_ends_early_and_the_next_one_continues(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, running = await with_task(store)
    large = [iteration(number, secrets.token_urlsafe(150_000)) for number in range(1, 4)]

    def commit(locked: Locked) -> Change:
        return task_lifecycle.commit(locked, 1, running.id, [TaskStarted(), *large], NOW)

    await store.transition(busy.id, commit)
    batches = [await store.list_events(busy.id, after, 100) for after in (0, 4, 5)]
    assert [[event.seq for event in batch] for batch in batches] == [[1, 2, 3, 4], [5], []]


async def test_a_page_of_large_events_ends_early_and_is_read_backward(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, running = await with_task(store)
    large = [iteration(number, secrets.token_urlsafe(450_000)) for number in range(1, 9)]

    def commit(locked: Locked) -> Change:
        return task_lifecycle.commit(locked, 1, running.id, [TaskStarted(), *large], NOW)

    await store.transition(busy.id, commit)
    pages = [await store.list_last_events(busy.id, before, 5) for before in (2**63 - 1, 8, 4)]
    assert [([event.seq for event in page], has_older) for page, has_older in pages] == [
        ([10, 9], True),
        ([7, 6], True),
        ([3, 2, 1], False),
    ]
    async with pool.connection() as connection:
        values = {"workspace_id": busy.id, "before_seq": 9, "limit": 5}
        await connection.execute("SET enable_seqscan = off")
        cursor = await connection.execute(f"EXPLAIN {events.SQL.list_last_events}".encode(), values)
        plan = str(await cursor.fetchall())
    assert "Index Scan Backward using events_pkey" in plan


@pytest.mark.parametrize(
    "type_", ["task_completed", "task_cancel_requested", "iteration_completed"]
)
async def test_the_database_refuses_a_second_event_of_this_type(pool: Pool, type_: str) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, submitted = await with_task(store)
    async with pool.connection() as connection:
        await connection.execute(_INSERT_EVENT, (busy.id, 2, type_, submitted.id, '{"number": 1}'))
        with pytest.raises(psycopg.errors.UniqueViolation):
            await connection.execute(
                _INSERT_EVENT, (busy.id, 3, type_, submitted.id, '{"number": 1}')
            )


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (
            "UPDATE tasks SET status = 'completed', completed_at = now()",
            psycopg.errors.CheckViolation,
        ),
        ("UPDATE tasks SET status = 'cancelled'", psycopg.errors.CheckViolation),
        ("UPDATE tasks SET cancel_reason = NULL", psycopg.errors.CheckViolation),
        ("UPDATE tasks SET status = 'unknown'", psycopg.errors.CheckViolation),
        ("UPDATE workspaces SET status = 'unknown'", psycopg.errors.CheckViolation),
        (
            'INSERT INTO tasks SELECT (jsonb_populate_record(t, \'{"id": "x"}\')).* FROM tasks t',
            psycopg.errors.UniqueViolation,
        ),
    ],
)
async def test_the_database_refuses_an_invalid_row(
    pool: Pool, statement: str, error: type[Exception]
) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    await store.record_cancellation(permission(), busy.id, None, intent())
    async with pool.connection() as connection:
        with pytest.raises(error):
            await connection.execute(statement)


async def test_characters_that_cannot_be_stored_are_replaced(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, submitted = await with_task(store)
    output = "a\0b\\u0000\ud800ü"
    payload = {
        "number": 1,
        "model_call": {},
        "tool_call": {"name": "shell", "result": {"output": output}},
    }
    events: list[AgentEvent] = [TaskStarted(), IterationCompleted(1, payload)]
    await store.transition(
        busy.id, lambda locked: task_lifecycle.commit(locked, 1, submitted.id, events, NOW)
    )
    stored = await store.get_task(busy.id, submitted.id)
    assert stored is not None and stored.result == "a\ufffdb\\u0000?ü"
    (event,) = await store.list_events(busy.id, 2, 1)
    assert event.payload["tool_call"]["result"]["output"] == "a\ufffdb\\u0000?ü"


async def test_a_transition_whose_caller_was_cancelled_is_published(database_url: str) -> None:
    published = Published()
    async with open_pool(database_url) as pool:
        store = PostgresStore(pool, machine_clock, published)
        busy, running = await with_task(store)
        published.clear()
        async with held(database_url, busy.id) as queued:
            starting = asyncio.create_task(
                store.transition(
                    busy.id,
                    lambda locked: task_lifecycle.commit(
                        locked, busy.epoch, running.id, [TaskStarted()], NOW
                    ),
                )
            )
            await queued(1)
            starting.cancel()
            await asyncio.wait({starting})
        # It is unknown whether the transition was committed, so all kinds of
        # subscribers must be notified.
        assert published.ids == published.watched == published.to_reconcile == [busy.id]


async def test_many_waiting_reads_of_one_log_leave_connections_to_others(database_url: str) -> None:
    """A lock on the events makes every read of the log wait. Other reads do not wait."""
    async with (
        open_pool(database_url, min_size=2, max_size=4) as pool,
        await AsyncConnection.connect(database_url) as holder,
    ):
        store = PostgresStore(pool, machine_clock)
        busy, _ = await with_task(store)
        await holder.execute("LOCK TABLE events")
        watching = [asyncio.create_task(store.list_events(busy.id, seq, 10)) for seq in range(20)]
        await asyncio.wait(watching, timeout=0.05)
        assert await store.get_workspace(busy.id) is not None
        await holder.rollback()
        assert [len(events) for events in await asyncio.gather(*watching)][:2] == [1, 0]


async def test_watchers_at_the_same_event_get_the_same_batch(pool: Pool) -> None:
    """A batch keeps its encoded events, so that a second watcher can use them."""
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    first, second, elsewhere = await asyncio.gather(
        *(store.list_events(busy.id, seq, 10) for seq in (0, 0, 1))
    )
    assert first is second and first is not elsewhere
    assert await store.list_events(busy.id, 0, 10) is not first


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
    # The lease had 5 s left before the heartbeat.
    assert left is not None and 5 < left <= LEASE_SECONDS
    assert await due_ids(store, Kind.LEASE, now=machine_clock()) == []
    await expire(database_url, workspace_id, seconds_left=-0.001)
    assert await due_ids(store, Kind.LEASE, now=machine_clock()) == [workspace_id]


async def test_heartbeats_share_a_statement(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    ids = [await leased(store, 20) for _ in range(5)]
    before = pool.get_stats()["requests_num"]
    found = await asyncio.gather(*(store.renew_lease(each, 1, LEASE_SECONDS) for each in ids))
    assert None not in found
    assert pool.get_stats()["requests_num"] - before == 1


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


async def test_a_renewal_updates_the_row_in_place(database_url: str, pool: Pool) -> None:
    """A HOT update does not change the indexes. Now and then, a full page makes the row move."""
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    await store.transition(
        busy.id, lambda locked: replace(unchanged(locked), lease_seconds=LEASE_SECONDS)
    )
    async with connected(pool) as connection:
        # Makes the session report its earlier updates before the statistics are reset.
        await connection.execute("SELECT pg_stat_force_next_flush()")
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
    assert in_place > updated // 2 > 0


async def expire(database_url: str, workspace_id: str, seconds_left: float) -> None:
    """Sets the remaining time of the lease."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE workspaces SET lease_expires_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE id = %s",
            (seconds_left, workspace_id),
        )


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
    """If the first transaction is rolled back, for example by a crash, the second call succeeds."""
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


async def test_a_read_of_a_task_leaves_out_the_started_calls(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, submitted = await with_task(store)
    opened = OpenIteration(number=1, usage=Usage(), started_calls=[{"id": "call_1"}])

    def report(locked: Locked) -> Change:
        assert locked.task is not None
        return Change(locked.workspace, replace(locked.task, open_iteration=opened))

    await store.transition(busy.id, report)
    read = await store.get_task(busy.id, submitted.id)
    assert read is not None and read.open_iteration == replace(opened, started_calls=())


async def test_an_event_of_a_type_of_a_later_version_has_its_place_in_the_log(pool: Pool) -> None:
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    before = await store.list_events(busy.id, 0, 100)
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE events SET type = 'of_a_later_version' WHERE workspace_id = %s AND seq = %s",
            (busy.id, before[-1].seq),
        )
    after = await store.list_events(busy.id, 0, 100)
    assert after[:-1] == before[:-1]
    assert after[-1] == replace(before[-1], type=EventType.UNSPECIFIED)
