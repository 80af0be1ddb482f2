"""Lets concurrent reads share queries.

SharedReads is for reads of the same key, BatchedReads for reads of different keys.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedReads(Generic[Key, Result]):
    """Callers that wait for the same key share one read.

    A caller never gets the result of a read that started before its call. At most `at_once` reads
    run at a time, which leaves connections for other queries.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Result]], at_once: int) -> None:
        self._read = read
        self._slots = asyncio.Semaphore(at_once)
        # Reads that have not started, which later callers join.
        self._next: dict[Key, asyncio.Task[Result]] = {}

    async def __call__(self, key: Key) -> Result:
        """The result of the read. Raises the error of the read."""
        reading = self._next.get(key)
        if reading is None:
            # An empty context: the deadline of the first caller must not apply to the others.
            reading = self._next[key] = asyncio.create_task(self._begin(key), context=Context())
            reading.add_done_callback(_observe)
        # The cancellation of one caller must not cancel the read of the others.
        return await asyncio.shield(reading)

    async def _begin(self, key: Key) -> Result:
        async with self._slots:
            del self._next[key]
            return await self._read(key)


class _Request(Generic[Result]):
    """The result of a requested key, and the number of callers that wait for it."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(_observe)
        self.callers = 0


class BatchedReads(Generic[Key, Result]):
    """Callers that wait for different keys share one query.

    At most one query is in flight, with a pause after each, so any number of callers takes one
    connection and a bounded share of the processor. Keys that are requested during a query or a
    pause go into the next query. Without either, the query starts at once.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Result]]],
        max_batch: int,
        pause_seconds: float,
    ) -> None:
        self._read = read
        self._max_batch = max_batch
        self._pause_seconds = pause_seconds
        # Requested keys that are not yet part of a query, and that a caller still waits for.
        self._waiting: dict[Key, _Request[Result]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def __call__(self, key: Key) -> Result | None:
        """The result for the key; None if there is none. Raises the error of the query."""
        request = self._waiting.get(key)
        if request is None:
            request = self._waiting[key] = _Request()
        request.callers += 1
        if self._reading is None:
            # An empty context: the deadline of the first caller must not apply to the others.
            self._reading = asyncio.create_task(self._read_waiting(), context=Context())
        try:
            return await asyncio.shield(request.answer)
        finally:
            request.callers -= 1
            if not request.callers and self._waiting.get(key) is request:
                # During an outage, callers time out faster than queries fail. Without this, their
                # keys would pile up.
                del self._waiting[key]

    async def _read_waiting(self) -> None:
        try:
            while self._waiting:
                keys = list(islice(self._waiting, self._max_batch))
                await self._read_batch({key: self._waiting.pop(key).answer for key in keys})
                await asyncio.sleep(self._pause_seconds)
        finally:
            self._reading = None

    async def _read_batch(self, batch: dict[Key, "asyncio.Future[Result | None]"]) -> None:
        """Reads one batch and answers its callers. A failure affects no other batch."""
        try:
            found = await self._read(list(batch))
        except Exception as error:  # noqa: BLE001 - raised in the callers
            for answer in batch.values():
                answer.set_exception(error)
        else:
            for key, answer in batch.items():
                answer.set_result(found.get(key))


def _observe(reading: "asyncio.Future[Result]") -> None:
    """Marks the exception as retrieved, because all callers may have been cancelled."""
    if not reading.cancelled():
        reading.exception()
