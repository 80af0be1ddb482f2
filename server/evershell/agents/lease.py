"""The agent's lease, measured by the agent's clock, and the heartbeat that renews it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

# The share of a lease that is reserved for ending the tools and the agent.
MARGIN_SHARE = 0.2
# The minimum of this reserve. An agent with a tool took 1.0 s to end on a machine with three times
# the load that the machine can handle.
MIN_MARGIN_SECONDS = 2.0
# For a short lease, the minimum is at most this share of the lease.
MAX_MARGIN_SHARE = 0.5
HEARTBEATS_A_LEASE = 6
# Each interval between heartbeats is multiplied by a random factor between these two numbers.
JITTER = (0.9, 1.1)
# The longest wait before a call is repeated.
MAX_BACKOFF_SECONDS = 10.0
# A wait takes at most this share of the remaining lease, so that there is time for several repeats.
BACKOFF_SHARE = 1 / 3


class Lease:
    """The time until which the control plane counts the agent as alive, less a margin.

    The lease begins when the renewing call is sent, so it never ends later than the lease in the
    database. The agent ends its tools within the margin. Times are monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._changed = asyncio.Event()
        self._over_at: float | None = None
        # Zero until the first renewal.
        self.length_seconds = 0.0

    def renew(self, sent_at: float, left_seconds: float, length_seconds: float) -> None:
        """Extends the lease after a call. `sent_at` is when the call was sent, by `clock`.

        `left_seconds` is the remaining time of the lease, and `length_seconds` its whole length.
        Replies may arrive out of order; an older reply never shortens the lease.
        """
        margin_seconds = max(
            length_seconds * MARGIN_SHARE,
            min(MIN_MARGIN_SECONDS, length_seconds * MAX_MARGIN_SHARE),
        )
        over_at = sent_at + left_seconds - margin_seconds
        self.length_seconds = length_seconds
        if self._over_at is None or over_at > self._over_at:
            self._over_at = over_at
            self._changed.set()

    @property
    def heartbeat_interval_seconds(self) -> float:
        """The interval between heartbeats: several can fail in a row before the lease ends."""
        return self.length_seconds / HEARTBEATS_A_LEASE

    @property
    def remaining_seconds(self) -> float | None:
        """How long the agent may still run; None before the first renewal."""
        return None if self._over_at is None else self._over_at - self.clock()

    @property
    def max_backoff_seconds(self) -> float:
        """The longest wait before a call is repeated."""
        remaining_seconds = self.remaining_seconds
        if remaining_seconds is None:
            return MAX_BACKOFF_SECONDS
        return min(MAX_BACKOFF_SECONDS, max(0.0, remaining_seconds) * BACKOFF_SHARE)

    async def wait_over(self) -> None:
        """Waits until the lease has ended without a renewal."""
        while (remaining_seconds := self.remaining_seconds) is None or remaining_seconds > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue


class Heartbeat:
    """Renews the lease several times before its end, and when the task or its phase changes.

    The intervals vary, so that agents that started together do not send their heartbeats together.

    One heartbeat runs at a time. The next one reports everything that changed meanwhile.
    """

    def __init__(self, beat: Callable[[], Awaitable[None]], lease: Lease) -> None:
        """`beat` repeats the call Heartbeat until it is answered."""
        self._beat = beat
        self._lease = lease
        self._requested = asyncio.Event()

    def beat_now(self) -> None:
        """Sends a heartbeat as soon as possible, because the task or its phase has changed."""
        self._requested.set()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises AgentEndingError."""
        while True:
            try:
                interval_seconds = self._lease.heartbeat_interval_seconds
                jitter = random.uniform(*JITTER)  # noqa: S311 - not a secret
                async with asyncio.timeout(interval_seconds * jitter):
                    await self._requested.wait()
            except TimeoutError:
                pass
            self._requested.clear()
            await self._beat()
