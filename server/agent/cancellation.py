"""The cancel flag of one task."""

import asyncio
import time
from collections.abc import Callable


class CancelFlag:
    """Whether a task is to be cancelled, and when its iteration is to be broken off.

    It is set by the signal and by every directive, in any order and as often as they like; once set
    it stays set, and the earliest `force_at` wins. The deadline is a wall-clock time (seconds since
    1970), because another host names it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._changed = asyncio.Event()
        self.is_requested = False
        self.force_at: float | None = None

    def request(self, force_at: float | None = None) -> None:
        """Sets the flag; with `force_at` the iteration is broken off then, if no earlier time is
        set.
        """
        self.is_requested = True
        if force_at is not None and (self.force_at is None or force_at < self.force_at):
            self.force_at = force_at
            self._changed.set()

    @property
    def is_force_due(self) -> bool:
        """Whether the time to break off has come."""
        return self.force_at is not None and self.force_at <= self._clock()

    async def wait_force_due(self) -> None:
        """Returns when the time to break off has come, also when it is set or moved earlier
        meanwhile.
        """
        while not self.is_force_due:
            self._changed.clear()
            remaining_seconds = None if self.force_at is None else self.force_at - self._clock()
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue
