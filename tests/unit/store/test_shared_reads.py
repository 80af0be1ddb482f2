"""Reads that concurrent callers share: which result each receives, limits, and failures."""

import asyncio
import gc
from collections.abc import Mapping, Sequence

import pytest

from evershell.store.shared_reads import BatchedReads, SharedReads
from tests.support.waiting import settle


class Log:
    """The source of SharedReads. A read ends on `release` and returns the length at its begin."""

    def __init__(self) -> None:
        self.length = 0
        self.reads: list[str] = []
        self.running = 0
        self.most_running = 0
        self.release = asyncio.Event()
        self.error: Exception | None = None

    async def read(self, key: str) -> int:
        length = self.length
        self.reads.append(key)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.release.wait()
            if self.error is not None:
                raise self.error
            return length
        finally:
            self.running -= 1


@pytest.fixture
def log() -> Log:
    return Log()


async def test_concurrent_callers_share_one_read(log: Log) -> None:
    shared = SharedReads(log.read, at_once=2)
    calls = [asyncio.create_task(shared("ws_1")) for _ in range(100)]
    log.release.set()
    assert await asyncio.gather(*calls) == [0] * 100
    assert log.reads == ["ws_1"]


async def test_a_caller_during_a_read_receives_the_next_one(log: Log) -> None:
    """The current read began earlier, and may have missed the change that woke the caller."""
    shared = SharedReads(log.read, at_once=2)
    early = asyncio.create_task(shared("ws_1"))
    await settle()
    log.length = 1
    late = [asyncio.create_task(shared("ws_1")) for _ in range(3)]
    await settle()
    log.release.set()
    assert (await early, await asyncio.gather(*late)) == (0, [1, 1, 1])
    assert log.reads == ["ws_1", "ws_1"]


async def test_the_number_of_concurrent_reads_is_limited(log: Log) -> None:
    shared = SharedReads(log.read, at_once=3)
    calls = [asyncio.create_task(shared(f"ws_{number}")) for number in range(10)]
    await settle()
    assert log.running == 3
    log.release.set()
    await asyncio.gather(*calls)
    assert (log.most_running, len(log.reads)) == (3, 10)


async def test_a_cancelled_caller_does_not_cancel_a_shared_read(log: Log) -> None:
    shared = SharedReads(log.read, at_once=1)
    first, second = asyncio.create_task(shared("ws_1")), asyncio.create_task(shared("ws_1"))
    await settle()
    first.cancel()
    await settle()
    log.release.set()
    assert await second == 0


async def test_a_failure_reaches_all_callers_and_the_next_call_reads_again(log: Log) -> None:
    shared = SharedReads(log.read, at_once=1)
    log.error = RuntimeError("the database does not answer")
    log.release.set()
    answers = await asyncio.gather(*(shared("ws_1") for _ in range(3)), return_exceptions=True)
    assert answers == [log.error] * 3
    log.error = None
    assert await shared("ws_1") == 0


async def test_a_failure_after_the_last_caller_was_cancelled_is_retrieved(log: Log) -> None:
    unobserved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unobserved.append(context))
    shared = SharedReads(log.read, at_once=1)
    log.error = RuntimeError("the database does not answer")
    call = asyncio.create_task(shared("ws_1"))
    await settle()
    call.cancel()
    await settle()
    log.release.set()
    await settle()
    gc.collect()
    assert unobserved == []


class Table:
    """The source of BatchedReads. A query ends on `may_end` and returns the rows of that moment."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.queries: list[list[str]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.may_end = asyncio.Event()
        # A query for this key fails.
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
            raise RuntimeError("the database does not answer")
        return {key: self.rows[key] for key in keys if key in self.rows}


@pytest.fixture
def table() -> Table:
    return Table()


async def test_keys_that_are_requested_during_a_query_go_into_the_next_one(
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


async def test_a_query_waits_for_the_pause_after_the_previous_one(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=60)
    table.may_end.set()
    assert await asyncio.wait_for(reads("first"), 10) is None
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reads("second"), 0.05)
    assert table.queries == [["first"]]


async def test_the_number_of_keys_in_a_query_is_limited(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.may_end.set()
    assert await asyncio.gather(*(reads(str(number)) for number in range(25))) == [None] * 25
    assert [len(keys) for keys in table.queries] == [10, 10, 5]
    assert table.most_in_flight == 1


async def test_a_failure_reaches_only_the_callers_of_its_batch(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=2, pause_seconds=0)
    table.poison, table.rows = "b", {"c": 3}
    table.may_end.set()
    a, b, c = await asyncio.gather(*(reads(key) for key in "abc"), return_exceptions=True)
    assert isinstance(a, RuntimeError) and a is b
    assert c == 3
    table.poison = ""
    assert await reads("b") is None


async def test_a_cancelled_caller_does_not_cancel_a_batch(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.rows = {"a": 1, "b": 2}
    first, same, other = (asyncio.create_task(reads(key)) for key in "aab")
    await settle()
    first.cancel()
    await settle()
    table.may_end.set()
    assert (await same, await other) == (1, 2)
    assert first.cancelled()


async def test_a_failed_batch_without_callers_does_not_affect_the_next(table: Table) -> None:
    unobserved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unobserved.append(context))
    reads = BatchedReads(table.read, max_batch=10, pause_seconds=0)
    table.poison, table.rows = "a", {"b": 2}
    call = asyncio.create_task(reads("a"))
    await settle()
    call.cancel()
    await settle()
    table.may_end.set()
    assert await reads("b") == 2
    gc.collect()
    assert unobserved == []


async def test_keys_whose_callers_were_all_cancelled_are_not_read(table: Table) -> None:
    reads = BatchedReads(table.read, max_batch=1, pause_seconds=0)
    first, kept, dropped, same = (
        asyncio.create_task(reads(key)) for key in ("first", "kept", "dropped", "kept")
    )
    await settle()
    for caller in (dropped, same):
        caller.cancel()
    await settle()
    table.may_end.set()
    await asyncio.gather(first, kept)
    await settle()
    assert table.queries == [["first"], ["kept"]]
