"""Batch: statements that items share, failures, callers that leave, and the end of a batch."""

import asyncio
from collections.abc import Sequence

import psycopg
import pytest
from structlog.testing import capture_logs

from evershell.core import deadline
from evershell.core.errors import UnavailableError
from evershell.store import batch as batch_module
from evershell.store.batch import Batch
from tests.support.waiting import eventually_async, settle


class Table:
    """Handles the items: doubles each number. A statement ends only once the test permits it."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []
        self.committed: list[int] = []
        self.may_end = asyncio.Event()
        # By number: the event that a statement with this number waits for.
        self.stuck: dict[int, asyncio.Event] = {}
        # By number: the error that a statement with this number raises.
        self.errors: dict[int, Exception] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def commit(self, requests: Sequence[int]) -> list[int]:
        self.statements.append(list(requests))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.may_end.wait()
            for request in requests:
                if request in self.stuck:
                    await self.stuck[request].wait()
        finally:
            self.in_flight -= 1
        for request in requests:
            if request in self.errors:
                raise self.errors[request]
        self.committed.extend(requests)
        return [2 * request for request in requests]


async def start(batch: Batch[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Calls the batch with each number, and lets the calls run until they wait."""

    async def call(number: int) -> int:
        return await batch(number)

    tasks = [asyncio.create_task(call(number)) for number in numbers]
    await settle()
    return tasks


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps any statement from counting as slow, even on a busy machine."""
    monkeypatch.setattr(batch_module, "_PATIENCE_SECONDS", 60.0)


@pytest.fixture
def table() -> Table:
    return Table()


async def test_requests_that_come_during_a_statement_share_the_next_one(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    callers = await start(batch, 1, 2, 3, 4)
    assert table.statements == [[1]]
    table.may_end.set()
    assert await asyncio.gather(*callers) == [2, 4, 6, 8]
    assert table.statements == [[1], [2, 3, 4]]
    assert table.most_in_flight == 1


async def test_the_number_of_statements_in_flight_is_limited(table: Table) -> None:
    batch = Batch(table.commit, at_most=2, at_once=2)
    callers = await start(batch, *range(9))
    assert table.statements == [[0], [1]]
    table.may_end.set()
    assert await asyncio.gather(*callers) == [2 * number for number in range(9)]
    assert table.statements == [[0], [1], [2, 3], [4, 5], [6, 7], [8]]
    assert table.most_in_flight == 2


async def test_a_caller_waits_no_longer_than_his_deadline(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)

    async def call_with_deadline() -> int:
        deadline.begin(0.2)
        return await batch(2)

    (first,) = await start(batch, 1)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(call_with_deadline(), 10)
    table.may_end.set()
    assert await first == 2


async def test_a_group_does_not_inherit_the_deadline_of_a_caller(table: Table) -> None:
    bounds: list[float] = []

    async def commit(requests: Sequence[int]) -> list[int]:
        bounds.append(deadline.bounded(60))
        return await table.commit(requests)

    batch = Batch(commit, at_most=10)

    async def call(number: int) -> int:
        deadline.begin(number)
        return await batch(number)

    callers = [asyncio.create_task(call(number)) for number in (20, 30, 40)]
    await settle()
    table.may_end.set()
    await asyncio.gather(*callers)
    assert bounds[0] < 20 and bounds[1:] == [60]


async def test_slow_statements_do_not_hold_the_next_requests_back(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_PATIENCE_SECONDS", 0.1)
    batch = Batch(table.commit, at_most=10)
    table.may_end.set()
    slow = [asyncio.Event() for _ in range(4)]
    callers = []
    for number, event in enumerate(slow):
        table.stuck[number] = event
        callers += await start(batch, number)
        if number < 3:
            (prompt,) = await start(batch, 100 + number)
            # The watchdog starts a second statement long before the first one returns.
            assert await asyncio.wait_for(prompt, 10) == 200 + 2 * number
            # Later requests do not wait for the watchdog.
            (next_one,) = await start(batch, 50)
            assert next_one.done()
    assert table.in_flight == 4
    callers += await start(batch, 7, 8, 9)
    await asyncio.wait(callers, timeout=0.3)
    assert not callers[-1].done(), "slow statements may take all connections"
    slow[0].set()
    await eventually_async(lambda: callers[-1].done())
    for event in slow:
        event.set()
    await asyncio.gather(*callers)
    assert table.most_in_flight <= 5
    monkeypatch.setattr(batch_module, "_PATIENCE_SECONDS", 60.0)
    table.may_end.clear()
    callers = await start(batch, 11, 12, 13)
    assert table.in_flight == 1
    table.may_end.set()
    await asyncio.gather(*callers)


async def test_a_deadlock_or_a_timeout_of_one_member_does_not_affect_the_others(
    table: Table,
) -> None:
    batch = Batch(table.commit, at_most=10)
    for number, cause in enumerate(
        [
            psycopg.errors.DeadlockDetected(),
            psycopg.errors.LockNotAvailable(),
            psycopg.errors.QueryCanceled(),
        ]
    ):
        table.errors[number] = UnavailableError("the statement failed")
        table.errors[number].__cause__ = cause
        callers = await start(batch, 9, number, 8)
        table.may_end.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert answers == [18, table.errors[number], 16]
        table.may_end.clear()


async def test_a_caller_who_left_is_not_committed_again_after_the_statement_failed(
    table: Table,
) -> None:
    batch = Batch(table.commit, at_most=10)
    table.errors[2], table.stuck[2] = psycopg.errors.CheckViolation(), asyncio.Event()
    callers = await start(batch, 1, 2, 3, 4)
    table.may_end.set()
    await settle()
    callers[2].cancel()
    table.stuck[2].set()
    assert await callers[3] == 8
    assert table.statements == [[1], [2, 3, 4], [2], [4]]
    assert isinstance(await asyncio.gather(callers[1], return_exceptions=True), list)


async def test_a_cancelled_caller_does_not_cancel_a_shared_statement(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    table.stuck[2] = asyncio.Event()
    callers = await start(batch, 1, 2, 3)
    table.may_end.set()
    await settle()
    callers[1].cancel()
    await settle()
    assert callers[1].cancelled()
    table.stuck[2].set()
    assert await callers[2] == 6
    assert table.committed == [1, 2, 3]


async def test_a_request_whose_caller_left_before_it_was_sent_is_dropped(table: Table) -> None:
    batch = Batch(table.commit, at_most=2)
    callers = await start(batch, 1, 2, 3, 4)
    callers[1].cancel()
    await settle()
    table.may_end.set()
    await asyncio.wait(callers)
    assert table.statements == [[1], [3, 4]]
    callers = await start(batch, 5)
    assert await callers[0] == 10


async def test_a_cancelled_first_caller_lets_the_others_start(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    first, second = await start(batch, 1, 2)
    table.may_end.set()
    first.cancel()
    await settle()
    # The second caller did not have to wait for the watchdog.
    assert second.done() and second.result() == 4
    assert table.committed == [2]


async def test_a_drain_waits_for_groups_whose_callers_have_left(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    table.stuck[2] = asyncio.Event()
    callers = await start(batch, 1, 2)
    table.may_end.set()
    await settle()
    callers[1].cancel()
    draining = asyncio.create_task(batch.drained())
    await settle()
    assert not draining.done()
    table.stuck[2].set()
    await asyncio.wait_for(draining, 10)
    assert table.committed == [1, 2]


async def put(batch: Batch[int, int], *numbers: int) -> None:
    for number in numbers:
        batch.put(number)
    await settle()


async def test_items_that_come_in_one_turn_of_the_event_loop_share_a_group(table: Table) -> None:
    batch = Batch(table.commit, at_most=3)
    await put(batch, 1, 2, 2, 3, 4)
    assert table.statements == [[1, 2, 3]]
    await put(batch, 5)
    table.may_end.set()
    await batch.drained()
    assert table.statements == [[1, 2, 3], [4, 5]]
    assert table.most_in_flight == 1


async def test_the_first_item_waits_until_others_are_gathered(table: Table) -> None:
    table.may_end.set()
    batch = Batch(table.commit, at_most=10, gather_seconds=0.2)
    began = asyncio.get_running_loop().time()
    (caller,) = await start(batch, 1)
    await put(batch, 2, 3)
    assert table.statements == []
    assert await asyncio.wait_for(caller, 10) == 2
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert table.statements == [[1, 2, 3]]


async def test_an_item_replaces_one_with_the_same_key_that_still_waits(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    await put(batch, 1)
    for number in (20, 30, 21):
        batch.put(number, number // 10)
    table.may_end.set()
    await batch.drained()
    assert table.statements == [[1], [21, 30]]


async def test_a_new_item_waits_like_those_that_are_handled_again(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_RETRY_SECONDS", 3_600.0)
    table.may_end.set()
    table.errors[1] = UnavailableError("the database does not answer")
    batch = Batch(table.commit, at_most=10)
    await put(batch, 1, 2)
    await put(batch, 3)
    assert table.statements == [[1, 2]]


async def test_items_are_handled_again_until_the_database_answers(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_RETRY_SECONDS", 0.01)
    table.may_end.set()
    table.errors[1] = UnavailableError("the database does not answer")
    batch = Batch(table.commit, at_most=10)
    await put(batch, 1, 2)
    await eventually_async(lambda: len(table.statements) >= 3)
    table.errors.clear()
    await eventually_async(lambda: sorted(table.committed) == [1, 2])


async def test_after_a_failure_a_newer_item_counts(table: Table) -> None:
    batch = Batch(table.commit, at_most=10)
    table.errors[10] = UnavailableError("the database does not answer")
    batch.put(10, "key")
    await settle()
    batch.put(11, "key")
    table.may_end.set()
    await eventually_async(lambda: table.committed == [11])
    assert table.statements == [[10], [11]]


async def test_an_item_that_is_refused_is_dropped_alone(table: Table) -> None:
    dropped: list[int] = []
    batch = Batch(table.commit, at_most=10, dropped=dropped.append)
    table.errors[2] = psycopg.errors.CheckViolation()
    table.may_end.set()
    with capture_logs() as logs:
        await put(batch, 1, 2, 3)
        await batch.drained()
    assert (table.committed, dropped) == ([1, 3], [2])
    assert [each["event"] for each in logs] == ["batch_item_refused"]


async def test_items_beyond_the_capacity_are_dropped(table: Table) -> None:
    dropped: list[int] = []
    batch = Batch(table.commit, at_most=10, capacity=2, dropped=dropped.append)
    await put(batch, 1)
    await put(batch, 2, 3, 4, 3)
    assert dropped == [4]


async def test_a_drain_makes_an_attempt_of_its_own() -> None:
    """A group that was in flight when the drain began may have failed with its connection."""
    statements: list[Sequence[int]] = []
    dropped: list[int] = []
    may_fail = asyncio.Event()

    async def commit(items: Sequence[int]) -> list[int]:
        statements.append(items)
        if len(statements) == 1:
            await may_fail.wait()
            raise UnavailableError("the connection is lost")
        return [0 for _ in items]

    batch = Batch(commit, at_most=2, dropped=dropped.append)
    await put(batch, 1)
    await put(batch, 2, 3)
    draining = asyncio.create_task(batch.drained())
    await settle()
    may_fail.set()
    await asyncio.wait_for(draining, 10)
    assert (statements, dropped) == ([[1], [2, 3], [1]], [])


async def test_a_drain_waits_for_nothing_and_gives_up_after_one_failure(table: Table) -> None:
    table.may_end.set()
    dropped: list[int] = []
    batch = Batch(table.commit, at_most=2, gather_seconds=60, dropped=dropped.append)
    await put(batch, 1, 2, 3)
    await asyncio.wait_for(batch.drained(), 10)
    assert (table.statements, dropped) == ([[1, 2], [3]], [])
    batch = Batch(table.commit, at_most=2, gather_seconds=60, dropped=dropped.append)
    table.errors[4] = UnavailableError("the database does not answer")
    await put(batch, 4, 5, 6, 7)
    await asyncio.wait_for(batch.drained(), 10)
    assert table.statements[2:] == [[4, 5]]
    assert sorted(dropped) == [4, 5, 6, 7]


async def test_at_the_end_an_item_that_cannot_get_its_lock_is_dropped_alone(table: Table) -> None:
    table.may_end.set()
    dropped: list[int] = []
    batch = Batch(table.commit, at_most=2, gather_seconds=60, dropped=dropped.append)
    table.errors[1] = UnavailableError("another transaction has the lock")
    table.errors[1].__cause__ = psycopg.errors.LockNotAvailable()
    await put(batch, 1, 2, 3)
    await asyncio.wait_for(batch.drained(), 10)
    assert (table.committed, dropped) == ([2, 3], [1])
