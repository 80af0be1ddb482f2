"""Shares a read among concurrent callers."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedReads(Generic[Key, Result]):
    """Lets callers that ask for the same key share one read.

    A caller never gets the result of a read that started before its call. At most `at_once` reads
    run at a time, which leaves connections for other queries.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Result]], at_once: int) -> None:
        self._read = read
        self._slots = asyncio.Semaphore(at_once)
        # The reads that have not started yet. Later callers with the same key share them.
        self._next: dict[Key, asyncio.Task[Result]] = {}

    async def __call__(self, key: Key) -> Result:
        """The result of the read. Raises the error of the read."""
        reading = self._next.get(key)
        if reading is None:
            # The context is empty, so that the first caller's deadline does not apply to others.
            reading = self._next[key] = asyncio.create_task(self._begin(key), context=Context())
            reading.add_done_callback(_observe)
        # Shielded, so that the cancellation of one caller does not cancel the read of the others.
        return await asyncio.shield(reading)

    async def _begin(self, key: Key) -> Result:
        async with self._slots:
            del self._next[key]
            return await self._read(key)


def _observe(reading: "asyncio.Future[Result]") -> None:
    """Retrieves the exception, so that asyncio does not log it if no caller is left."""
    if not reading.cancelled():
        reading.exception()
