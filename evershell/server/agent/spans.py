"""The spans of the agent: what it did, for how long, and in which trace.

The agent does without OpenTelemetry. It keeps the spans that have ended until span_export.py hands
them to the control plane, which exports them.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from evershell.server.core import trace
from evershell.server.core.trace import TraceContext

# The spans that wait for their export. Beyond this number, the oldest are lost.
_KEPT_SPANS = 512
_SAMPLED = 1


@dataclass(slots=True)
class Span:
    """An operation. Its attributes have no content of the task: no text, command or output."""

    name: str
    # The position of the span itself: operations within it are its children.
    context: TraceContext
    # Empty for the first span of a trace.
    parent_span_id: str
    attributes: dict[str, str]
    # Nanoseconds since 1970.
    began_at: int
    ended_at: int = 0
    has_failed: bool = False


class Spans:
    """Records the operations that belong to a sampled trace. Never waits and never raises."""

    def __init__(
        self,
        *,
        is_on: bool = False,
        now: Callable[[], int] = time.time_ns,
        kept: int = _KEPT_SPANS,
    ) -> None:
        """Records nothing unless `is_on`. `now` returns nanoseconds since 1970."""
        self.is_on = is_on
        self._now = now
        self._ended: deque[Span] = deque(maxlen=kept)
        self._any_ended = asyncio.Event()
        # Spans lost since `take` was called last.
        self._lost = 0

    @contextmanager
    def within(
        self, name: str, parent: TraceContext | None, **attributes: str
    ) -> Iterator[Span | None]:
        """A span for the duration of the context. It is the current position in the trace.

        None if nothing is recorded.
        """
        span = self.begin(name, parent, **attributes)
        if span is None:
            yield None
            return
        try:
            with trace.within(span.context):
                yield span
        except Exception:
            span.has_failed = True
            raise
        finally:
            self.end(span)

    def begin(self, name: str, parent: TraceContext | None, **attributes: str) -> Span | None:
        """A span that lasts until `end`; None if nothing is recorded."""
        if not self.is_on or parent is None or not int(parent.flags, 16) & _SAMPLED:
            return None
        context = TraceContext(parent.trace_id, secrets.token_hex(8), parent.flags)
        named = {f"evershell.{key}": value for key, value in attributes.items()}
        return Span(name, context, parent.span_id, named, self._now())

    def end(self, span: Span) -> None:
        """Ends the span, and keeps it for the export."""
        # A clock that was set back must not make the span end before it began.
        span.ended_at = max(span.began_at, self._now())
        self._lost += len(self._ended) == self._ended.maxlen
        self._ended.append(span)
        self._any_ended.set()

    def take(self) -> tuple[list[Span], int]:
        """The spans that have ended, and how many more were lost. They are no longer kept."""
        taken, lost = list(self._ended), self._lost
        self._ended.clear()
        self._lost = 0
        self._any_ended.clear()
        return taken, lost

    async def wait(self) -> None:
        """Returns when a span has ended that is not taken yet."""
        await self._any_ended.wait()


def new_trace() -> TraceContext:
    """A new trace, which no span has yet."""
    # A parent without an id: its children are the first spans of the trace.
    return TraceContext(secrets.token_hex(16), "")
