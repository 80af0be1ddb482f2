"""Reads that concurrent callers share: which result each receives, even after a failure."""

import asyncio

import pytest

from evershell.store.shared_reads import SharedReads
from tests.support.waiting import settle


class Log:
    """The log that is read. A read waits for `release`, and returns the length before the wait."""

    def __init__(self) -> None:
        self.length = 0
        self.reads: list[str] = []
        self.release = asyncio.Event()
        self.error: Exception | None = None

    async def read(self, key: str) -> int:
        length = self.length
        self.reads.append(key)
        await self.release.wait()
        if self.error is not None:
            raise self.error
        return length


@pytest.fixture
def log() -> Log:
    return Log()


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


async def test_reads_beyond_the_limit_wait(log: Log) -> None:
    shared = SharedReads(log.read, at_once=2)
    calls = [asyncio.create_task(shared(f"ws_{number}")) for number in range(3)]
    await settle()
    assert log.reads == ["ws_0", "ws_1"]
    log.release.set()
    await asyncio.gather(*calls)
    assert log.reads == ["ws_0", "ws_1", "ws_2"]


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
