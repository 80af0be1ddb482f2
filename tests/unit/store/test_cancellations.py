"""Cancellations of concurrent callers, which share a statement: outcomes, order and commit."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import cancel_requested_payload
from evershell.core.ids import new_task_id, new_workspace_id
from evershell.core.ports import RecordedCancellation
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.store.pool import Pool, open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import complete, intent, permission, with_task
from tests.support.store.locks import held
from tests.support.store.published import Published
from tests.support.waiting import eventually_async, settle

# How many statements start with one request each. Later requests share a statement.
STATEMENTS_AT_ONCE = 2
# The log of a workspace after one cancellation of its first task.
CANCELLED_LOG = [(1, "task_submitted"), (2, "task_cancel_requested")]


class Cell:
    """A store on a database whose statements return when the test permits."""

    def __init__(self, url: str, pool: Pool, published: Published) -> None:
        self.url = url
        self.published = published
        self.store = PostgresStore(pool, machine_clock, published)

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
        """Keeps statements in flight, so that all requests in the block share the next one.

        Yields the connection that blocks them.
        """
        fillers = await self.busy(STATEMENTS_AT_ONCE)
        async with await AsyncConnection.connect(self.url) as holder:
            await holder.execute("LOCK TABLE events IN SHARE MODE")
            calls = [self.cancel(filler.id) for filler, _ in fillers]
            await self.waiting(STATEMENTS_AT_ONCE)
            yield holder
            await settle()
            await holder.rollback()
            await asyncio.gather(*calls)

    async def waiting(self, count: int, kind: str = "%") -> None:
        """Waits until `count` sessions wait for a lock of this kind."""
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
        """How many different transactions have last written these tasks."""
        query = "SELECT count(DISTINCT xmin::text) FROM tasks WHERE id = ANY (%s)"
        return int((await self.query(query, list(task_ids)))[0][0])

    async def log(self, workspace_id: str) -> list[tuple[int, str]]:
        events = await self.store.list_events(workspace_id, 0, 100)
        return [(event.seq, str(event.type)) for event in events]


_HOLD_COMMITS = """
    CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON events
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
"""
_RELEASE_COMMITS = "DROP FUNCTION wait_at_commit CASCADE"


@pytest.fixture
def cell(database_url: str, pool: Pool) -> Cell:
    return Cell(database_url, pool, Published())


async def test_each_member_of_a_statement_gets_its_own_outcome(cell: Cell) -> None:
    (first, one), (second, two), (third, three), (ended, over) = await cell.busy(4)
    await complete(cell.store, ended, over.id)
    cell.published.clear()
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
        assert await cell.log(busy.id) == CANCELLED_LOG
        event = (await cell.store.list_events(busy.id, 1, 1))[0]
        assert (event.task_id, event.payload) == (
            submitted.id,
            cancel_requested_payload(intent(reason)),
        )
    assert set(cell.published.ids) >= {first.id, second.id, third.id}
    assert ended.id not in cell.published.ids


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
    assert await cell.log(busy.id) == CANCELLED_LOG


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
    assert await cell.log(locked.id) == CANCELLED_LOG


async def test_many_requests_for_locked_workspaces_leave_connections_to_others(
    database_url: str,
) -> None:
    async with open_pool(database_url, min_size=2, max_size=8) as pool:
        cell = Cell(database_url, pool, Published())
        locked = await cell.busy(5)
        ((free, _),) = await cell.busy(1)
        async with await AsyncConnection.connect(database_url) as holder:
            await holder.execute("SELECT FROM workspaces WHERE id <> %s FOR UPDATE", (free.id,))
            calls = [cell.cancel(each.id) for each, _ in locked for _ in range(4)]
            # One call waits for each locked workspace, up to a quarter of the connections.
            await cell.waiting(2)
            assert (await cell.cancel(free.id)).recorded
            await holder.rollback()
        found = await asyncio.gather(*calls)
    recorded = [each.recorded for each in found]
    assert [recorded[at : at + 4].count(True) for at in range(0, 20, 4)] == [1] * 5


@pytest.mark.parametrize("count", [1, 5])
async def test_nobody_is_answered_before_the_commit(cell: Cell, count: int) -> None:
    """The commit waits in a deferred trigger, after all rows of the statement were written."""
    busy = [workspace for workspace, _ in await cell.busy(count + STATEMENTS_AT_ONCE)]
    cell.published.clear()
    async with await AsyncConnection.connect(cell.url, autocommit=True) as holder:
        await holder.execute(_HOLD_COMMITS)
        try:
            await holder.execute("SELECT pg_advisory_lock(1)")
            calls = [cell.cancel(each.id) for each in busy[: 1 if count == 1 else None]]
            await cell.waiting(1 if count == 1 else STATEMENTS_AT_ONCE + 1, "advisory")
            assert not any(call.done() for call in calls)
            assert cell.published.ids == []
            assert (await cell.query("SELECT count(cancel_requested_at) FROM tasks"))[0] == (0,)
            await holder.execute("SELECT pg_advisory_unlock(1)")
            assert all(found.recorded for found in await asyncio.gather(*calls))
        finally:
            await holder.execute(_RELEASE_COMMITS)


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


async def test_a_single_caller_who_leaves_is_published(cell: Cell) -> None:
    """The cancellation is published because it may have been committed."""
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
