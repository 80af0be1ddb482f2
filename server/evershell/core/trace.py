"""The W3C trace of the current call (https://www.w3.org/TR/trace-context/).

The service passes the trace on to the agent and records its id in the events that the call causes,
even if it exports no spans.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

HEADER = "traceparent"
# Versions later than 00 may append further fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A position in a trace. New spans have `span_id` as their parent."""

    trace_id: str
    span_id: str
    # "01" means that the trace is sampled.
    flags: str = "01"

    @classmethod
    def parse(cls, traceparent: str | None) -> Self | None:
        """Parses the header. Returns None if it is absent or not valid: then there is no trace."""
        match = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if (
            match is None
            or not int(match[2], 16)
            or not int(match[3], 16)
            or (match[1] == "00" and match[5])
        ):
            return None
        return cls(match[2], match[3], match[4])

    @property
    def traceparent(self) -> str:
        """The value of the header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def begin(context: TraceContext | None) -> None:
    """Sets the trace of the current call; None for no trace."""
    _current.set(context)


def current() -> TraceContext | None:
    """The position of the current call in its trace; None for no trace."""
    return _current.get()


def current_id() -> str:
    """The id of the current call's trace; empty for no trace."""
    context = _current.get()
    return context.trace_id if context is not None else ""


@contextmanager
def within(context: TraceContext | None) -> Iterator[None]:
    """Sets the trace inside the block; None for no trace."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
