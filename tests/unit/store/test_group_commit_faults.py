"""GroupCommit when a member makes the statement fail, or a caller leaves."""

import asyncio
import gc

import psycopg
import pytest

from evershell.core.errors import UnavailableError
from evershell.store import group_commit
from evershell.store.group_commit import GroupCommit
from tests.support.waiting import settle
from tests.unit.store.doubling import Table, start


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement counts as slow, on a busy machine either."""
    monkeypatch.setattr(group_commit, "_PATIENCE_SECONDS", 60.0)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.mark.parametrize(
    "error", [psycopg.errors.CheckViolation(), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "")]
)
async def test_only_the_member_that_made_the_statement_fail_gets_the_error(
    table: Table, error: Exception
) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.errors[3] = error
    callers = await start(group, 1, 2, 3, 4)
    table.may_end.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [2, 4, error, 8]
    assert sorted(table.committed) == [1, 2, 4]


async def test_a_deadlock_or_a_timeout_of_one_member_does_not_affect_the_others(
    table: Table,
) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    for number, cause in enumerate(
        [
            psycopg.errors.DeadlockDetected(),
            psycopg.errors.LockNotAvailable(),
            psycopg.errors.QueryCanceled(),
        ]
    ):
        table.errors[number] = UnavailableError("the statement failed")
        table.errors[number].__cause__ = cause
        callers = await start(group, 9, number, 8)
        table.may_end.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert answers == [18, table.errors[number], 16]
        table.may_end.clear()


async def test_an_unknown_outcome_reaches_all_members_and_nothing_is_repeated(
    table: Table,
) -> None:
    """The statement may have been committed before the connection broke."""
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.errors[3] = UnavailableError("the connection broke")
    table.errors[3].__cause__ = psycopg.OperationalError("the connection broke")
    callers = await start(group, 1, 2, 3, 4)
    table.may_end.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert answers == [2, *[table.errors[3]] * 3]
    assert table.statements == [[1], [2, 3, 4]]
    assert await group(5) == 10


async def test_a_caller_who_left_is_not_committed_again_after_the_statement_failed(
    table: Table,
) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.errors[2], table.stuck[2] = psycopg.errors.CheckViolation(), asyncio.Event()
    callers = await start(group, 1, 2, 3, 4)
    table.may_end.set()
    await settle()
    callers[2].cancel()
    table.stuck[2].set()
    assert await callers[3] == 8
    assert table.statements == [[1], [2, 3, 4], [2], [4]]
    assert isinstance(await asyncio.gather(callers[1], return_exceptions=True), list)


async def test_a_cancelled_caller_does_not_cancel_a_shared_statement(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.stuck[2] = asyncio.Event()
    callers = await start(group, 1, 2, 3)
    table.may_end.set()
    await settle()
    callers[1].cancel()
    await settle()
    assert callers[1].cancelled()
    table.stuck[2].set()
    assert await callers[2] == 6
    assert table.committed == [1, 2, 3]


async def test_a_request_whose_caller_left_before_it_was_sent_is_dropped(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=2, at_once=1)
    callers = await start(group, 1, 2, 3, 4)
    callers[1].cancel()
    await settle()
    table.may_end.set()
    await asyncio.wait(callers)
    assert table.statements == [[1], [3, 4]]
    callers = await start(group, 5)
    assert await callers[0] == 10


async def test_a_cancelled_first_caller_lets_the_others_start(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    first, second = await start(group, 1, 2)
    table.may_end.set()
    first.cancel()
    await settle()
    # Not by the watchdog, which would take longer.
    assert second.done() and second.result() == 4
    assert table.committed == [2]


async def test_a_drain_waits_for_groups_whose_callers_have_left(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.stuck[2] = asyncio.Event()
    callers = await start(group, 1, 2)
    table.may_end.set()
    await settle()
    callers[1].cancel()
    draining = asyncio.create_task(group.drained())
    await settle()
    assert not draining.done()
    table.stuck[2].set()
    await asyncio.wait_for(draining, 10)
    assert table.committed == [1, 2]


async def test_errors_of_callers_who_left_are_not_reported(table: Table) -> None:
    unobserved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unobserved.append(context))
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.errors[2] = UnavailableError("the connection broke")
    table.stuck[2] = asyncio.Event()
    callers = await start(group, 1, 2, 3)
    table.may_end.set()
    await settle()
    for caller in callers[1:]:
        caller.cancel()
    table.stuck[2].set()
    await settle()
    gc.collect()
    assert unobserved == []
