"""The store on PostgreSQL: constraints, locks and connections."""

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked
from evershell.core.task import AgentEvent, IterationCompleted, TaskStarted, TaskStatus
from evershell.store.connections import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import NOW, complete, intent, permission, with_task
from tests.support.store.locks import held
from tests.support.store.published import Published
from tests.support.world import iteration

_INSERT_EVENT = "INSERT INTO events VALUES (%s, %s, %s, now(), %s, NULL, NULL, %s)"


async def test_one_of_many_cancellations_at_two_replicas_is_recorded(database_url: str) -> None:
    async with open_pool(database_url) as one, open_pool(database_url) as other:
        stores = [PostgresStore(one, machine_clock), PostgresStore(other, machine_clock)]
        busy, _ = await with_task(stores[0])
        calls = [
            stores[number % 2].record_cancellation(
                permission(), busy.id, None, intent(request_id=f"req_{number}")
            )
            for number in range(50)
        ]
        found = await asyncio.gather(*calls)
        assert [each.recorded for each in found].count(True) == 1
        assert [event.type for event in await stores[0].list_events(busy.id, 0, 10)] == [
            "task_submitted",
            "task_cancel_requested",
        ]


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
    large = [iteration(number, "x" * 3_000_000) for number in range(1, 4)]

    def commit(locked: Locked) -> Change:
        return task_lifecycle.commit(locked, 1, running.id, [TaskStarted(), *large], NOW)

    await store.transition(busy.id, commit)
    batches = [await store.list_events(busy.id, after, 100) for after in (0, 4, 5)]
    assert [[event.seq for event in batch] for batch in batches] == [[1, 2, 3, 4], [5], []]


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
        ("UPDATE events SET type = 'unknown'", psycopg.errors.CheckViolation),
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
        # It is unknown whether the transition was committed, so it has to be published to all.
        assert published.ids == published.watched == published.to_reconcile == [busy.id]


async def test_many_waiting_reads_of_one_log_leave_connections_to_others(database_url: str) -> None:
    """A lock on the events makes every read of the log wait. Other reads do not wait."""
    async with (
        open_pool(database_url, min_size=2, max_size=2) as pool,
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
    """The encoder recognises a batch that it has encoded for another watcher."""
    store = PostgresStore(pool, machine_clock)
    busy, _ = await with_task(store)
    first, second, elsewhere = await asyncio.gather(
        *(store.list_events(busy.id, seq, 10) for seq in (0, 0, 1))
    )
    assert first is second and first is not elsewhere
    assert await store.list_events(busy.id, 0, 10) is not first
