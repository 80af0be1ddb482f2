"""Cancellations of concurrent callers, which share a statement: outcomes, order and commit."""

import asyncio

import pytest
from psycopg import AsyncConnection

from evershell.core.errors import UnavailableError
from evershell.core.event import cancel_requested_payload
from evershell.core.ids import new_task_id, new_workspace_id
from evershell.store.connections import Pool, open_pool
from tests.support.store.examples import complete, intent, permission
from tests.support.store.locks import held
from tests.support.store.published import Published
from tests.unit.store.cancelling import CANCELLED_LOG, STATEMENTS_AT_ONCE, Cell

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
    async with open_pool(database_url, min_size=2, max_size=4) as pool:
        cell = Cell(database_url, pool, Published())
        locked = await cell.busy(5)
        ((free, _),) = await cell.busy(1)
        async with await AsyncConnection.connect(database_url) as holder:
            await holder.execute("SELECT FROM workspaces WHERE id <> %s FOR UPDATE", (free.id,))
            calls = [cell.cancel(each.id) for each, _ in locked for _ in range(4)]
            # One for each locked workspace, and at most half of the connections.
            await cell.waiting(2)
            assert (await cell.cancel(free.id)).recorded
            await holder.rollback()
        found = await asyncio.gather(*calls)
    recorded = [each.recorded for each in found]
    assert [recorded[at : at + 4].count(True) for at in range(0, 20, 4)] == [1] * 5


async def test_the_wait_for_a_locked_workspace_is_limited(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evershell.store.cancellations.ANSWER_TIMEOUT_SECONDS", 0.2)
    ((locked, _),) = await cell.busy(1)
    async with held(cell.url, locked.id):
        found = await asyncio.gather(
            *(cell.cancel(locked.id) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in found] == [UnavailableError] * 3
    # A call that was given up may have been recorded when the lock was free.
    again = await cell.cancel(locked.id)
    assert again.task is not None and again.task.cancel is not None


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
