"""The agent's lease, by its own clock."""

import asyncio
import time
from collections.abc import Callable

MARGIN_SHARE = 0.2
# What an agent with a tool took to end on a machine with three times the work that it can do was
# 1.0 s.
MIN_MARGIN_SECONDS = 2.0
# A lease so short that the least margin would eat it up is halved instead.
MAX_MARGIN_SHARE = 0.5
HEARTBEATS_A_LEASE = 6


class Lease:
    """How long the control plane takes the agent for alive.

    It is counted from before the renewing call was sent, so by the agent's clock it is never over
    later than by the database's, and it ends a margin early, in which the agent can end its tools.
    Times are monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._changed = asyncio.Event()
        self._over_at: float | None = None
        # Zero until the first renewal.
        self.length_seconds = 0.0

    def renew(self, sent_at: float, length_seconds: float) -> None:
        """A call sent at `sent_at`, by this lease's clock, renewed it. A reply that comes out of
        order never shortens it.
        """
        margin_seconds = max(
            length_seconds * MARGIN_SHARE,
            min(MIN_MARGIN_SECONDS, length_seconds * MAX_MARGIN_SHARE),
        )
        over_at = sent_at + length_seconds - margin_seconds
        self.length_seconds = length_seconds
        if self._over_at is None or over_at > self._over_at:
            self._over_at = over_at
            self._changed.set()

    @property
    def heartbeat_interval_seconds(self) -> float:
        """Often enough that several heartbeats may fail in a row."""
        return self.length_seconds / HEARTBEATS_A_LEASE

    @property
    def remaining_seconds(self) -> float | None:
        """How long the agent may go on. None before the first renewal: there is no lease yet that
        could end.
        """
        return None if self._over_at is None else self._over_at - self.clock()

    async def wait_over(self) -> None:
        """Returns when the lease was not renewed in time."""
        while (remaining_seconds := self.remaining_seconds) is None or remaining_seconds > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue
