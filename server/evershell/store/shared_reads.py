"""Lets callers that ask for the same share one read."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedReads(Generic[Key, Result]):
    """Lets callers that want the same key share one read.

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


def _observe(reading: "asyncio.Future[Result]") -> None:
    """Marks the exception as retrieved, because all callers may have been cancelled."""
    if not reading.cancelled():
        reading.exception()
