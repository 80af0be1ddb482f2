"""Hands the spans of the agent to the control plane, apart from everything else that it does."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import grpc.aio

from evershell.server.agent.spans import Span, Spans
from evershell.server.telemetry.logs import Log

# How long to wait after a span has ended, so that one call takes several.
_GATHER_SECONDS = 1.0
# How long the agent waits at its end for the last call.
_LAST_SECONDS = 0.5
_WARNING_SECONDS = 60.0

# Hands the spans to the control plane, once.
Send = Callable[[Sequence[Span]], Awaitable[None]]


class SpanExport:
    """One call at a time, which is not repeated: spans of a failed call are lost.

    While the control plane does not answer, the spans wait, in bounded number.
    """

    def __init__(
        self,
        spans: Spans,
        send: Send,
        log: Log,
        *,
        gather_seconds: float = _GATHER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spans = spans
        self._send = send
        self._log = log
        self._gather_seconds = gather_seconds
        self._monotonic = monotonic
        self._warned_at: float | None = None
        # Lost since the last warning.
        self._lost = 0

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._spans.wait()
            await asyncio.sleep(self._gather_seconds)
            await self._export()

    async def close(self) -> None:
        """Hands over the last spans, within a short time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._export()

    async def _export(self) -> None:
        spans, lost = self._spans.take()
        self._lost += lost
        if not spans:
            return
        try:
            await self._send(spans)
        except Exception as error:  # noqa: BLE001 - no failure of the export may end the agent
            self._lost += len(spans)
            self._warn(
                error.code().name if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            )

    def _warn(self, reason: str) -> None:
        now = self._monotonic()
        if self._warned_at is not None and now - self._warned_at < _WARNING_SECONDS:
            return
        self._log.warning("spans_lost", count=self._lost, reason=reason)
        self._warned_at, self._lost = now, 0
