"""The task that an agent works on, and its cancel flag."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evershell.core.task import Phase


class TaskFailed(Exception):
    """The task cannot be continued. The exception's text becomes the task's readable `reason`."""


class CancelFlag:
    """Whether the task is cancelled, and when its iteration is interrupted.

    Signals and directives may set the flag in any order and any number of times. Once set, it stays
    set, and the earliest `force_at` applies. `force_at` is a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = asyncio.Event()
        self.is_requested = False
        self.force_at: float | None = None

    def request(self, force_after_seconds: float | None = None) -> None:
        """Sets the flag, and `force_at` unless an earlier time is set."""
        self.is_requested = True
        if force_after_seconds is None:
            return
        force_at = self._clock() + force_after_seconds
        if self.force_at is None or force_at < self.force_at:
            self.force_at = force_at
            self._changed.set()

    @property
    def is_force_due(self) -> bool:
        """Whether `force_at` has passed."""
        return self.force_at is not None and self.force_at <= self._clock()

    async def wait_force_due(self) -> None:
        """Waits until `force_at` has passed, even if it is set or moved earlier meanwhile."""
        while not self.is_force_due:
            self._changed.clear()
            remaining_seconds = None if self.force_at is None else self.force_at - self._clock()
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A model call or a tool call that has not ended."""

    phase: Phase
    # When the call began, by time.monotonic().
    began: float
    # Returns the name of the model or the tool. The name of a model may be known only later.
    name: Callable[[], str]
    arguments: str = ""
    # Returns the last part of the output so far, with the agent's keys removed.
    output: Callable[[], str]


@dataclass(slots=True, kw_only=True)
class ActiveTask:
    """The task that the agent works on."""

    id: str
    description: str
    max_iterations: int
    cancel: CancelFlag = field(default_factory=CancelFlag)
    # The number of iterations that have ended.
    iterations: int = 0
    phase: Phase = Phase.NONE
    # The running calls, in the order in which they began.
    calls: dict[asyncio.Future[Any], OpenCall] = field(default_factory=dict)
    # Whether the agent has proposed the end of the task to the control plane.
    is_ending: bool = False
