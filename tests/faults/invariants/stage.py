"""The event loop of a run.

A clock sets the time of the event loop. Each step runs until no asyncio task can continue.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest.mock import patch

from tests.faults.invariants.clock import Clock
from tests.faults.invariants.spy_store import SpyStore

# After this many turns of the event loop, every asyncio task is waiting for something.
_SETTLED_TURNS = 25
_LIMIT_TURNS = 200_000

Returned = TypeVar("Returned")


class Stage:
    """An event loop whose timers fire only when the clock is advanced, so runs can be repeated."""

    def __init__(self, clock: Clock) -> None:
        # The stores whose open calls `settle` waits for.
        self.stores: list[SpyStore] = []
        self._turns = 0
        # The event loop calls `time.monotonic` as well, so its timers follow the clock.
        self._time = patch("time.monotonic", clock.monotonic)
        self._time.start()
        self._runner = asyncio.Runner()

    def open(self, first_step: Coroutine[Any, Any, None]) -> None:
        """Runs the first step. If it fails, closes the stage.

        Unlike a step of `run`, it may wait for something outside the event loop.
        """
        try:
            self._runner.run(first_step)
        except BaseException:
            self._end()
            raise

    def run(self, step: Coroutine[Any, Any, Returned]) -> Returned:
        """Runs a step, and returns once everything is at rest."""
        return self._runner.run(self._take(step))

    async def settle(self) -> None:
        """Waits until no asyncio task can continue without another rule."""
        quiet_turns = 0
        for _ in range(_LIMIT_TURNS):
            if quiet_turns == _SETTLED_TURNS:
                return
            self._turns += 1
            if all(store.is_at_rest for store in self.stores):
                quiet_turns += 1
                await asyncio.sleep(0)
            else:
                quiet_turns = 0
                for store in self.stores:
                    await store.rest()
        raise AssertionError("the event loop does not come to rest")

    def close(self, last_step: Coroutine[Any, Any, None]) -> None:
        """Runs the last step and closes the event loop."""
        try:
            self._runner.run(last_step)
        finally:
            self._end()

    def _end(self) -> None:
        self._runner.close()
        self._time.stop()

    async def _take(self, step: Coroutine[Any, Any, Returned]) -> Returned:
        taken = asyncio.create_task(step)
        while not taken.done():
            turns = self._turns
            await self.settle()
            # The step may call `settle` as well, which adds turns. In that case, the step is not
            # stuck.
            if self._turns == turns + _SETTLED_TURNS and not taken.done():
                taken.print_stack()
                raise AssertionError("a step waits for something that only another step can do")
        await self.settle()
        return taken.result()
