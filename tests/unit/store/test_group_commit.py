"""GroupCommit: which requests share a statement, and how long each caller waits."""

import asyncio
from collections.abc import Sequence

import pytest

from evershell.core import deadline
from evershell.core.errors import UnavailableError
from evershell.store import group_commit
from evershell.store.group_commit import GroupCommit
from tests.support.waiting import eventually_async, settle
from tests.unit.store.doubling import Table, start


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement counts as slow, on a busy machine either."""
    monkeypatch.setattr(group_commit, "_PATIENCE_SECONDS", 60.0)


@pytest.fixture
def table() -> Table:
    return Table()


async def test_one_caller_waits_for_nobody_and_needs_no_task(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.may_end.set()
    before = asyncio.all_tasks()
    assert await group(1) == 2
    assert asyncio.all_tasks() == before
    assert table.statements == [[1]]


async def test_requests_that_come_during_a_statement_share_the_next_one(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    callers = await start(group, 1, 2, 3, 4)
    assert table.statements == [[1]]
    table.may_end.set()
    assert await asyncio.gather(*callers) == [2, 4, 6, 8]
    assert table.statements == [[1], [2, 3, 4]]
    assert table.most_in_flight == 1


async def test_nobody_is_answered_before_the_statement_of_his_request_returns(
    table: Table,
) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.stuck[3] = asyncio.Event()
    callers = await start(group, 1, 2, 3)
    table.may_end.set()
    assert await callers[0] == 2
    await settle()
    assert [caller.done() for caller in callers] == [True, False, False]
    table.stuck[3].set()
    assert await asyncio.gather(*callers) == [2, 4, 6]


async def test_the_number_of_requests_in_a_statement_is_limited(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=3, at_once=1)
    callers = await start(group, *range(9))
    table.may_end.set()
    assert await asyncio.gather(*callers) == [2 * number for number in range(9)]
    assert table.statements == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]


async def test_the_number_of_statements_in_flight_is_limited(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=2, at_once=2)
    callers = await start(group, *range(9))
    assert table.statements == [[0], [1]]
    table.may_end.set()
    assert await asyncio.gather(*callers) == [2 * number for number in range(9)]
    assert table.statements == [[0], [1], [2, 3], [4, 5], [6, 7], [8]]
    assert table.most_in_flight == 2


async def test_a_caller_waits_no_longer_than_his_deadline(table: Table) -> None:
    group = GroupCommit(table.commit, max_batch=10, at_once=1)

    async def call_with_deadline() -> int:
        deadline.begin(0.2)
        return await group(2)

    (first,) = await start(group, 1)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(call_with_deadline(), 10)
    table.may_end.set()
    assert await first == 2


async def test_a_group_does_not_inherit_the_deadline_of_a_caller(table: Table) -> None:
    bounds: list[float] = []

    async def commit(requests: Sequence[int]) -> list[int]:
        bounds.append(deadline.bounded(60))
        return await table.commit(requests)

    group = GroupCommit(commit, max_batch=10, at_once=1)

    async def call(number: int) -> int:
        deadline.begin(number)
        return await group(number)

    callers = [asyncio.create_task(call(number)) for number in (20, 30, 40)]
    await settle()
    table.may_end.set()
    await asyncio.gather(*callers)
    assert bounds[0] < 20 and bounds[1:] == [60]


async def test_slow_statements_do_not_hold_the_next_requests_back(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_PATIENCE_SECONDS", 0.1)
    group = GroupCommit(table.commit, max_batch=10, at_once=1)
    table.may_end.set()
    slow = [asyncio.Event() for _ in range(4)]
    callers = []
    for number, event in enumerate(slow):
        table.stuck[number] = event
        callers += await start(group, number)
        if number < 3:
            (prompt,) = await start(group, 100 + number)
            # The watchdog starts the second statement, long before the first returns.
            assert await asyncio.wait_for(prompt, 10) == 200 + 2 * number
            # Requests do not wait for the watchdog again.
            (next_one,) = await start(group, 50)
            assert next_one.done()
    assert table.in_flight == 4
    callers += await start(group, 7, 8, 9)
    await asyncio.wait(callers, timeout=0.3)
    assert not callers[-1].done(), "slow statements may take all connections"
    slow[0].set()
    await eventually_async(lambda: callers[-1].done())
    for event in slow:
        event.set()
    await asyncio.gather(*callers)
    assert table.most_in_flight <= 5
    monkeypatch.setattr(group_commit, "_PATIENCE_SECONDS", 60.0)
    table.may_end.clear()
    callers = await start(group, 11, 12, 13)
    assert table.in_flight == 1
    table.may_end.set()
    await asyncio.gather(*callers)
