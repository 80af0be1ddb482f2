"""Reads that many want at the same time: a thousand watchers of one workspace are woken together, and all ask for the same."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SharedReads(Generic[Key, Result]):
    """Whoever asks for a key is given the result of a read that began after they asked, together with all who asked by then.

    No more than `at_once` reads are under way, so that they leave connections for others.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Result]], at_once: int) -> None:
        self._read = read
        self._slots = asyncio.Semaphore(at_once)
        # Those that have not begun: they may be joined.
        self._next: dict[Key, asyncio.Task[Result]] = {}

    async def __call__(self, key: Key) -> Result:
        """Raises what the read raises."""
        reading = self._next.get(key)
        if reading is None:
            # Of no caller's context: the first one's deadline is not the others'.
            reading = self._next[key] = asyncio.create_task(self._begin(key), context=Context())
            reading.add_done_callback(_observe)
        # One that goes away takes the read from nobody.
        return await asyncio.shield(reading)

    async def _begin(self, key: Key) -> Result:
        async with self._slots:
            del self._next[key]
            return await self._read(key)


def _observe(reading: "asyncio.Task[Result]") -> None:
    """Perhaps nobody is left to be told that it failed."""
    if not reading.cancelled():
        reading.exception()
