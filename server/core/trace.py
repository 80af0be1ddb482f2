"""Which trace the call in hand is part of (https://www.w3.org/TR/trace-context/). What the call causes is part of it too.

It is passed on, to the agent and into the events that come of the call, whether or not this service sends spans anywhere.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

HEADER = "traceparent"
# Later versions than 00 may have more behind it.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace: whatever is begun here has the span as its parent."""

    trace_id: str
    span_id: str
    # "01": the trace is recorded.
    flags: str = "01"

    @classmethod
    def parse(cls, traceparent: str | None) -> Self | None:
        """None for what is absent or not valid: the call then belongs to no trace."""
        found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if found is None or not int(found[2], 16) or not int(found[3], 16) or (found[1] == "00" and found[5]):
            return None
        return cls(found[2], found[3], found[4])

    @property
    def traceparent(self) -> str:
        """As a header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def begin(context: TraceContext | None) -> None:
    """Says of which trace the call in hand is part; None: of none."""
    _current.set(context)


def current() -> TraceContext | None:
    """Where the call in hand is in its trace."""
    return _current.get()


def current_id() -> str:
    """The trace's id; empty when there is none."""
    context = _current.get()
    return context.trace_id if context is not None else ""


@contextmanager
def within(context: TraceContext | None) -> Iterator[None]:
    """What is done here has another parent."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
