"""Measures how long calls wait until a worker begins them, and decides which calls to refuse.

Calls that a worker has not begun wait in gRPC, where the worker cannot see them. The worker
therefore measures the wait with its own call, which waits like any other call.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

import grpc

# While the wait is shorter than this, a worker keeps up with its calls. On two cores with 30 other
# busy processes, the 99th percentile was 0.05 s and the maximum 0.2 s.
_SHORT_SECONDS = 0.1
# How long the wait must exceed _SHORT_SECONDS before calls are refused. A shorter burst is served.
_STANDING_SECONDS = 1.0
# The pause between two measurements: while the worker keeps up, and while it does not.
_PAUSE_SECONDS, _SHORT_PAUSE_SECONDS = 0.2, 0.02
# How long a measurement may take. Most callers give up a call before it has waited this long.
_LONGEST_SECONDS = 10.0


class Priority(IntEnum):
    """The order in which calls are refused. The highest number is refused first."""

    # Register and Heartbeat. An agent without a lease is lost, so these calls are never refused.
    LEASES = 0
    # Cancellations, stops, holds, and reads of one task, by callers and by agents.
    FIRST = 1
    # All other calls of agents. Some of them end tasks, which makes room for other work.
    AGENTS = 2
    # Submissions and all other calls.
    OTHERS = 3
    # Lists, streams, and reads of current iterations.
    LAST = 4


# By priority: calls are refused only while the wait is longer than this, in seconds. The limits are
# below 3 s, because an agent gives up an attempt after 3 s, and gRPC resets a call that has waited
# for 3 s.
_LIMITS = {
    Priority.LEASES: math.inf,
    Priority.FIRST: 2.5,
    Priority.AGENTS: 2.0,
    Priority.OTHERS: 1.5,
    Priority.LAST: 1.0,
}


class QueueingDelay:
    """Decides by the measured wait which calls to refuse.

    As in CoDel (RFC 8289), no call is refused until the wait has been long for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When the measurement in progress began.
        self._sent_at: float | None = None
        self._last_seconds = 0.0
        # When the wait was last short.
        self._was_short_at = clock()

    def begin(self) -> None:
        """Begins a measurement. Called when the measuring call is sent."""
        self._sent_at = self._clock()
        if self._last_seconds < _SHORT_SECONDS:
            # The last wait was short, and nothing has been measured since, so the wait counts as
            # short until now.
            self._was_short_at = self._sent_at

    def end(self) -> None:
        """Ends the measurement: the worker has begun the measuring call, or the call timed out."""
        if self._sent_at is not None:
            now = self._clock()
            self._last_seconds, self._sent_at = now - self._sent_at, None
            if self._last_seconds < _SHORT_SECONDS:
                self._was_short_at = now

    def forget(self) -> None:
        """Drops all measurements. The wait counts as short until a new one shows otherwise."""
        self._sent_at, self._last_seconds = None, 0.0

    @property
    def seconds(self) -> float:
        """The wait in the last measurement, or in the current one if that is already longer."""
        if self._sent_at is None:
            return self._last_seconds
        return max(self._last_seconds, self._clock() - self._sent_at)

    @property
    def is_short(self) -> bool:
        """Whether the worker keeps up with its calls."""
        return self.seconds < _SHORT_SECONDS

    def refuses(self, priority: Priority) -> bool:
        """Whether to refuse a call of this priority now."""
        seconds = self.seconds
        if seconds <= _LIMITS[priority]:
            return False
        return self._clock() - self._was_short_at > _STANDING_SECONDS


class DelayProbe(grpc.GenericRpcHandler):
    """Measures the wait while calls arrive, by calling a method of the same server."""

    def __init__(self, delay: QueueingDelay) -> None:
        self.delay = delay
        # Callers cannot guess the path, so nobody else can end a measurement.
        self._path = f"/{secrets.token_hex(16)}/Probe"
        self._arrived = asyncio.Event()
        self.arrived = self._arrived.set

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of the measuring call; None for any other path."""
        if handler_call_details.method != self._path:
            return None
        self.delay.end()
        return grpc.unary_unary_rpc_method_handler(_answer)

    async def run(self, address: str) -> None:
        """Measures until it is cancelled or fails. `address` is the address of the server."""
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        try:
            async with grpc.aio.insecure_channel(address, options) as channel:
                await self._measure(channel.unary_unary(self._path))
        finally:
            # There are no further measurements, and the last one must not cause refusals.
            self.delay.forget()

    async def _measure(self, call: Any) -> None:
        while True:
            if self.delay.is_short:
                self._arrived.clear()
                await self._arrived.wait()
            self.delay.begin()
            with suppress(grpc.aio.AioRpcError):
                await call(b"", timeout=_LONGEST_SECONDS)
            self.delay.end()
            is_short = self.delay.is_short
            await asyncio.sleep(_PAUSE_SECONDS if is_short else _SHORT_PAUSE_SECONDS)


async def _answer(request: bytes, context: object) -> bytes:
    return request
