"""Reads that are shared: who is given which, how many there are at once, and what becomes of failures."""

import asyncio
import gc

import pytest

from server.store.shared_reads import SharedReads


class Log:
    """What is read: each read takes until the test lets it end, and sees what there was when it began."""

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


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


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
