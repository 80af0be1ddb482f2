"""Reads that are shared: who is given which, how many there are at once, and what becomes of
failures.
"""

import asyncio
import gc
from collections.abc import Mapping, Sequence

import pytest

from server.store.shared_reads import BatchedReads, SharedReads
from tests.support.waiting import settle


class Log:
    """What is read: each read takes until the test lets it end, and sees what there was when it
    began.
    """

    def __init__(self) -> None:
        self.length = 0
        self.begun: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.release = asyncio.Event()
        self.error: Exception | None = None

    async def read(self, key: str) -> int:
        seen = self.length
        self.begun.append(key)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.release.wait()
            if self.error is not None:
                raise self.error
            return seen
        finally:
            self.under_way -= 1


@pytest.fixture
def log() -> Log:
    return Log()


async def test_all_who_ask_together_share_one_read(log: Log) -> None:
    shared = SharedReads(log.read, at_once=2)
    asking = [asyncio.create_task(shared("ws_1")) for _ in range(100)]
    log.release.set()
    assert await asyncio.gather(*asking) == [0] * 100
    assert log.begun == ["ws_1"]


async def test_who_asks_while_a_read_is_under_way_is_given_the_next_one(log: Log) -> None:
    """The one under way began before, and may have missed what they were woken for."""
    shared = SharedReads(log.read, at_once=2)
    early = asyncio.create_task(shared("ws_1"))
    await settle()
    log.length = 1
    late = [asyncio.create_task(shared("ws_1")) for _ in range(3)]
    await settle()
    log.release.set()
    assert (await early, await asyncio.gather(*late)) == (0, [1, 1, 1])
    assert log.begun == ["ws_1", "ws_1"]


async def test_only_so_many_are_under_way_at_once(log: Log) -> None:
    shared = SharedReads(log.read, at_once=3)
    asking = [asyncio.create_task(shared(f"ws_{number}")) for number in range(10)]
    await settle()
    assert log.under_way == 3
    log.release.set()
    await asyncio.gather(*asking)
    assert (log.most_under_way, len(log.begun)) == (3, 10)


async def test_one_that_goes_away_takes_the_read_from_nobody(log: Log) -> None:
    shared = SharedReads(log.read, at_once=1)
    first, second = asyncio.create_task(shared("ws_1")), asyncio.create_task(shared("ws_1"))
    await settle()
    first.cancel()
    await settle()
    log.release.set()
    assert await second == 0


async def test_a_failure_is_told_to_all_and_the_next_read_is_a_new_one(log: Log) -> None:
    shared = SharedReads(log.read, at_once=1)
    log.error = RuntimeError("the database is away")
    log.release.set()
    answers = await asyncio.gather(*(shared("ws_1") for _ in range(3)), return_exceptions=True)
    assert answers == [log.error] * 3
    log.error = None
    assert await shared("ws_1") == 0


async def test_a_failure_of_which_nobody_is_left_to_be_told_is_not_unobserved(log: Log) -> None:
    unobserved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unobserved.append(context))
    shared = SharedReads(log.read, at_once=1)
    log.error = RuntimeError("the database is away")
    asking = asyncio.create_task(shared("ws_1"))
    await settle()
    asking.cancel()
    await settle()
    log.release.set()
    await settle()
    gc.collect()
    assert unobserved == []


class Table:
    """What is read: each query takes until the test lets it end, and finds the keys that are there
    when it ends.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.queries: list[list[str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.may_end = asyncio.Event()
        self.poison = ""

    async def read(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.queries.append(list(keys))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.may_end.wait()
        finally:
            self.in_flight -= 1
        if self.poison in keys:
            raise RuntimeError("the database is away")
        return {key: self.rows[key] for key in keys if key in self.rows}


@pytest.fixture
def table() -> Table:
    return Table()


async def test_what_is_asked_for_while_a_query_is_in_flight_goes_into_the_next_one(
    table: Table,
) -> None:
    reads = BatchedReads(table.read, max_batch=1_000, pause_seconds=0)
    table.rows = {"0": 0, "57": 57}
    first = asyncio.create_task(reads("0"))
    await settle()
    others = [asyncio.create_task(reads(str(number % 100))) for number in range(300)]
    await settle()
    assert table.queries == [["0"]]
    table.may_end.set()
    answers = await asyncio.gather(first, *others)
    assert answers == [0, *(table.rows.get(str(number % 100)) for number in range(300))]
    assert (len(table.queries), len(table.queries[1]), table.most_in_flight) == (2, 100, 1)


async def test_there_is_a_pause_between_queries_and_none_before_the_first(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=60)
    table.may_end.set()
    assert await asyncio.wait_for(reads("first"), 10) is None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reads("second"), 0.05)
    assert table.queries == [["first"]]


async def test_a_query_looks_for_only_so_many(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.may_end.set()
    assert await asyncio.gather(*(reads(str(number)) for number in range(25))) == [None] * 25
    assert [len(keys) for keys in table.queries] == [10, 10, 5]
    assert table.most_in_flight == 1


async def test_a_failure_is_told_to_its_batch_alone(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=2, pause_seconds=0)
    table.poison, table.rows = "b", {"c": 3}
    table.may_end.set()
    a, b, c = await asyncio.gather(*(reads(key) for key in "abc"), return_exceptions=True)
    assert isinstance(a, RuntimeError) and a is b
    assert c == 3
    table.poison = ""
    assert await reads("b") is None


async def test_one_that_goes_away_takes_the_batch_from_nobody(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.rows = {"a": 1, "b": 2}
    first, same, other = (asyncio.create_task(reads(key)) for key in "aab")
    await settle()
    first.cancel()
    await settle()
    table.may_end.set()
    assert (await same, await other) == (1, 2)
    assert first.cancelled()


async def test_a_batch_of_which_nobody_is_left_does_not_hinder_the_next(table: Table) -> None:
    unobserved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unobserved.append(context))
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.poison, table.rows = "a", {"b": 2}
    gone = asyncio.create_task(reads("a"))
    await settle()
    gone.cancel()
    await settle()
    table.may_end.set()
    assert await reads("b") == 2
    gc.collect()
    assert unobserved == []


async def test_what_nobody_waits_for_any_more_is_not_read(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=1, pause_seconds=0)
    first, left, gone, same = (
        asyncio.create_task(reads(key)) for key in ("first", "left", "gone", "left")
    )
    await settle()
    for caller in (gone, same):
        caller.cancel()
    await settle()
    table.may_end.set()
    await asyncio.gather(first, left)
    await settle()
    assert table.queries == [["first"], ["left"]]
