"""Waits for the threads in which a framework runs synchronous functions.

A framework that is interrupted leaves such a function running, because a thread cannot be
interrupted. The end of the task may be recorded only after the function has returned.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary


class _Threads(ThreadPoolExecutor):
    """The executor of an event loop. `running` contains the calls that have not ended."""

    def __init__(self) -> None:
        super().__init__()
        self.running: set[Future[Any]] = set()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future


# The executor of each event loop.
_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


@asynccontextmanager
async def threads_end() -> AsyncIterator[ThreadPoolExecutor]:
    """If the block is cancelled, waits until no function runs in the event loop's executor.

    Yields this executor, for frameworks that would otherwise use their own.
    """
    loop = asyncio.get_running_loop()
    if loop not in _of_loops:
        _of_loops[loop] = _Threads()
        loop.set_default_executor(_of_loops[loop])
    try:
        yield _of_loops[loop]
    except asyncio.CancelledError:
        while running := [asyncio.wrap_future(each) for each in set(_of_loops[loop].running)]:
            await asyncio.wait(running)
        raise
