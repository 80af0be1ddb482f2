"""Cancellations of concurrent callers, which share a statement, on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from server.core.caller import Permission
from server.core.errors import UnavailableError
from server.core.event import cancel_requested_payload
from server.core.ids import new_task_id, new_workspace_id
from server.core.ports import RecordedCancellation
from server.core.task import Task
from server.core.workspace import Workspace
from server.store.pool import Pool, open_pool
from server.store.postgres_store import PostgresStore
from tests.support.store.announced import Announced
from tests.support.store.examples import complete, intent, permission, with_task
from tests.support.store.locks import held
from tests.support.waiting import eventually_async, settle

# As many as start alone. Later requests gather.
_STATEMENTS_AT_ONCE = 2

_HOLD_COMMITS = """
    CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON events
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
"""
_RELEASE_COMMITS = "DROP FUNCTION wait_at_commit CASCADE"


class Cell:
    """A store on a database, on which a test decides when statements return."""

    def __init__(self, url: str, pool: Pool, announced: Announced) -> None:
        self.url = url
        self.announced = announced
        self.store = PostgresStore(pool, announced)

    def cancel(
        self,
        workspace_id: str,
        task_id: str | None = None,
        *,
        by: Permission | None = None,
        **of_intent: Any,
    ) -> asyncio.Task[RecordedCancellation]:
        return asyncio.create_task(
            self.store.record_cancellation(
                by or permission(), workspace_id, task_id, intent(**of_intent)
            )
        )

    async def busy(self, count: int) -> list[tuple[Workspace, Task]]:
        return [await with_task(self.store) for _ in range(count)]

    @asynccontextmanager
    async def statements_in_flight(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Keeps statements in flight, so that all requests of the block share the next one.

        Yields the connection that blocks them.
        """
        fillers = await self.busy(_STATEMENTS_AT_ONCE)
        async with await AsyncConnection.connect(self.url) as holder:
            await holder.execute("LOCK TABLE events IN SHARE MODE")
            calls = [self.cancel(filler.id) for filler, _ in fillers]
            await self.waiting(_STATEMENTS_AT_ONCE)
            yield holder
            await settle()
            await holder.rollback()
            await asyncio.gather(*calls)

    async def waiting(self, count: int, kind: str = "%") -> None:
        """Waits until that many sessions wait for a lock of this kind."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND wait_event LIKE %s"
        )

        async def reached() -> bool:
            return bool((await self.query(query, kind))[0][0] >= count)

        await eventually_async(reached)

    async def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async with await AsyncConnection.connect(self.url, autocommit=True) as connection:
            return await (await connection.execute(query, parameters)).fetchall()

    async def transactions(self, task_ids: Sequence[str]) -> int:
        """The number of transactions that have written these tasks last."""
        query = "SELECT count(DISTINCT xmin::text) FROM tasks WHERE id = ANY (%s)"
        return int((await self.query(query, list(task_ids)))[0][0])

    async def log(self, workspace_id: str) -> list[tuple[int, str]]:
        events = await self.store.list_events(workspace_id, 0, 100)
        return [(event.seq, str(event.type)) for event in events]


@pytest.fixture
async def cell(database_url: str) -> AsyncIterator[Cell]:
    async with open_pool(database_url) as pool:
        yield Cell(database_url, pool, Announced())


_RECORDED_LOG = [(1, "task_submitted"), (2, "task_cancel_requested")]


async def test_each_member_of_a_statement_gets_its_own_outcome(cell: Cell) -> None:
    (first, one), (second, two), (third, three), (ended, over) = await cell.busy(4)
    await complete(cell.store, ended, over.id)
    cell.announced.clear()
    async with cell.statements_in_flight():
        calls = [
            cell.cancel(new_workspace_id()),
            cell.cancel(first.id, reason="first"),
            cell.cancel(second.id, by=permission(org_id="org_b")),
            cell.cancel(second.id, new_task_id()),
            cell.cancel(second.id, two.id, reason="second"),
            cell.cancel(third.id, by=permission(user_id="user_2", own_only=True)),
            cell.cancel(ended.id, over.id),
            cell.cancel(third.id, reason="third ü🐚", by=permission(own_only=True)),
        ]
    found = await asyncio.gather(*calls)
    outcomes = [
        (each.workspace and each.workspace.id, each.task and each.task.id, each.recorded)
        for each in found
    ]
    assert outcomes == [
        (None, None, False),
        (first.id, one.id, True),
        (None, None, False),
        (second.id, None, False),
        (second.id, two.id, True),
        (third.id, three.id, False),
        (ended.id, over.id, False),
        (third.id, three.id, True),
    ]
    assert await cell.transactions([one.id, two.id, three.id]) == 1
    for busy, submitted, reason in [
        (first, one, "first"),
        (second, two, "second"),
        (third, three, "third ü🐚"),
    ]:
        stored = await cell.store.get_task(busy.id, submitted.id)
        assert stored is not None and stored.cancel == intent(reason)
        assert await cell.log(busy.id) == _RECORDED_LOG
        event = (await cell.store.list_events(busy.id, 1, 1))[0]
        assert (event.task_id, event.payload) == (
            submitted.id,
            cancel_requested_payload(intent(reason)),
        )
    assert set(cell.announced.ids) >= {first.id, second.id, third.id}
    assert ended.id not in cell.announced.ids


async def test_requests_for_one_workspace_take_effect_in_their_order(cell: Cell) -> None:
    ((busy, submitted),) = await cell.busy(1)
    deadlines = [None, 9.0, 20.0, 5.0, None]
    async with cell.statements_in_flight():
        calls = [
            cell.cancel(busy.id, request_id=f"req_{number}", force_after_seconds=seconds)
            for number, seconds in enumerate(deadlines)
        ]
    found = await asyncio.gather(*calls)
    assert [each.recorded for each in found] == [True, False, False, False, False]
    assert [each.workspace and each.workspace.last_seq for each in found] == [2] * 5
    intents = [each.task.cancel for each in found if each.task and each.task.cancel]
    assert [each.request_id for each in intents] == ["req_0"] * 5
    expected = [intent(force_after_seconds=seconds).force_at for seconds in (None, 9, 9, 5, 5)]
    assert [each.force_at for each in intents] == expected
    assert await cell.transactions([submitted.id]) == 1
    assert await cell.log(busy.id) == _RECORDED_LOG


async def test_a_member_that_cannot_be_stored_does_not_affect_the_others(cell: Cell) -> None:
    (first, one), (refused, two), (last, three), (conflict, _) = await cell.busy(4)
    insert = "INSERT INTO events VALUES (%s, 2, 'workspace_failed', now(), NULL, NULL, '{}')"
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
        assert await cell.log(busy.id) == _RECORDED_LOG
    assert await cell.transactions([one.id, three.id]) == 2


async def test_a_deadlock_of_one_member_does_not_affect_the_others(cell: Cell) -> None:
    (first, one), (second, _), (other, _) = await cell.busy(3)
    async with await AsyncConnection.connect(cell.url) as stranger:
        # Not a transaction of this service, because it locks a task before its workspace.
        await stranger.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (one.id,))
        async with cell.statements_in_flight() as holder:
            calls = [cell.cancel(each.id) for each in (second, first, other)]
            await settle()
            await holder.rollback()
            await cell.waiting(1, "transactionid")
            # The statement that has waited longer looks for a deadlock first, and fails.
            await stranger.execute("SELECT FROM workspaces WHERE id = %s FOR UPDATE", (second.id,))
        await stranger.rollback()
        found = await asyncio.gather(*calls)
    assert [each.recorded for each in found] == [True] * 3
    for busy in (first, second, other):
        assert await cell.log(busy.id) == _RECORDED_LOG


async def test_a_locked_workspace_does_not_delay_the_others_of_its_statement(cell: Cell) -> None:
    (locked, _), (first, one), (last, three) = await cell.busy(3)
    async with held(cell.url, locked.id):
        async with cell.statements_in_flight():
            calls = [
                cell.cancel(first.id),
                cell.cancel(locked.id, request_id="req_first"),
                cell.cancel(last.id),
                cell.cancel(locked.id, request_id="req_second"),
            ]
        assert (await calls[0]).recorded and (await calls[2]).recorded
        assert await cell.transactions([one.id, three.id]) == 1
        await cell.waiting(1)
        assert not calls[1].done() and not calls[3].done()
    assert [(await calls[1]).recorded, (await calls[3]).recorded] == [True, False]
    assert await cell.log(locked.id) == _RECORDED_LOG


async def test_many_requests_for_locked_workspaces_leave_connections_to_others(
    database_url: str,
) -> None:
    async with open_pool(database_url, min_size=2, max_size=4) as pool:
        cell = Cell(database_url, pool, Announced())
        locked = await cell.busy(3)
        ((free, _),) = await cell.busy(1)
        async with await AsyncConnection.connect(database_url) as holder:
            await holder.execute("SELECT FROM workspaces WHERE id <> %s FOR UPDATE", (free.id,))
            calls = [cell.cancel(each.id) for each, _ in locked for _ in range(10)]
            # One for each locked workspace, and at most half of the connections.
            await cell.waiting(2)
            assert (await asyncio.wait_for(cell.cancel(free.id), 1)).recorded
            await holder.rollback()
        found = await asyncio.gather(*calls)
    recorded = [each.recorded for each in found]
    assert [recorded[at : at + 10].count(True) for at in (0, 10, 20)] == [1] * 3


async def test_the_wait_for_a_locked_workspace_is_limited(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.cancellations.ANSWER_TIMEOUT_SECONDS", 0.2)
    ((locked, submitted),) = await cell.busy(1)
    async with held(cell.url, locked.id):
        found = await asyncio.gather(
            *(cell.cancel(locked.id) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in found] == [UnavailableError] * 3
    assert await cell.store.get_task(locked.id, submitted.id) == submitted
    assert (await cell.cancel(locked.id)).recorded


@pytest.mark.parametrize("count", [1, 5])
async def test_nobody_is_answered_before_the_commit(cell: Cell, count: int) -> None:
    """The commit waits in a deferred trigger, after all rows of the statement were written."""
    busy = [workspace for workspace, _ in await cell.busy(count + _STATEMENTS_AT_ONCE)]
    cell.announced.clear()
    async with await AsyncConnection.connect(cell.url, autocommit=True) as holder:
        await holder.execute(_HOLD_COMMITS)
        try:
            await holder.execute("SELECT pg_advisory_lock(1)")
            calls = [cell.cancel(each.id) for each in busy[: 1 if count == 1 else None]]
            await cell.waiting(1 if count == 1 else _STATEMENTS_AT_ONCE + 1, "advisory")
            assert not any(call.done() for call in calls)
            assert cell.announced.ids == []
            assert (await cell.query("SELECT count(cancel_requested_at) FROM tasks"))[0] == (0,)
            await holder.execute("SELECT pg_advisory_unlock(1)")
            assert all(found.recorded for found in await asyncio.gather(*calls))
        finally:
            await holder.execute(_RELEASE_COMMITS)


async def test_a_caller_who_leaves_does_not_affect_the_others(cell: Cell) -> None:
    (first, _), (left, submitted), (last, _) = await cell.busy(3)
    cell.announced.clear()
    async with cell.statements_in_flight():
        calls = [cell.cancel(each.id) for each in (first, left, last)]
        # The watchdog sends the statement, although the others are still in flight.
        await cell.waiting(_STATEMENTS_AT_ONCE + 1)
        calls[1].cancel()
        await settle()
        assert calls[1].cancelled()
    assert (await calls[0]).recorded and (await calls[2]).recorded
    stored = await cell.store.get_task(left.id, submitted.id)
    assert stored is not None and stored.cancel is not None
    assert left.id in cell.announced.ids


async def test_a_single_caller_who_leaves_is_announced(cell: Cell) -> None:
    """It is unknown whether his intent was committed."""
    ((busy, _),) = await cell.busy(1)
    cell.announced.clear()
    async with await AsyncConnection.connect(cell.url) as holder:
        await holder.execute("LOCK TABLE events IN SHARE MODE")
        call = cell.cancel(busy.id)
        await cell.waiting(1)
        call.cancel()
        await asyncio.wait({call})
    assert cell.announced.ids == [busy.id]


async def test_a_broken_connection_is_unavailable_for_all_members(
    cell: Cell,
) -> None:
    busy = await cell.busy(3)
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE '%%record_cancellations(%%' "
        "AND state = 'active' AND pid <> pg_backend_pid()"
    )
    async with cell.statements_in_flight():
        calls = [cell.cancel(each.id) for each, _ in busy]
        await cell.waiting(_STATEMENTS_AT_ONCE + 1)
        assert await cell.query(terminate) == [(True,)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [UnavailableError] * 3
    for each, submitted in busy:
        assert await cell.store.get_task(each.id, submitted.id) == submitted
        assert (await cell.cancel(each.id)).recorded


async def test_the_number_of_requests_in_a_statement_is_limited(cell: Cell) -> None:
    busy = await cell.busy(100)
    async with cell.statements_in_flight():
        calls = [cell.cancel(each.id) for each, _ in busy]
    assert all(found.recorded for found in await asyncio.gather(*calls))
    assert await cell.transactions([submitted.id for _, submitted in busy]) == 2


async def test_a_drain_waits_for_statements_whose_callers_have_left(cell: Cell) -> None:
    ((busy, submitted),) = await cell.busy(1)
    async with cell.statements_in_flight():
        call = cell.cancel(busy.id)
        await cell.waiting(_STATEMENTS_AT_ONCE + 1)
        call.cancel()
        draining = asyncio.create_task(cell.store.drained())
        await settle()
        assert not draining.done()
    await draining
    stored = await cell.store.get_task(busy.id, submitted.id)
    assert stored is not None and stored.cancel is not None
