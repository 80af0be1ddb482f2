"""How long the caller of the call in hand still waits: whatever waits for others within a call asks here how long it may."""

import time
from contextvars import ContextVar

# Kept of the caller's time, so that the answer arrives within it.
_ANSWER_SECONDS = 0.25
# What is left to try with even when the caller's time is all but over: an answer in a moment is still worth having.
_LEAST_SECONDS = 0.1

_until: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(left_seconds: float | None) -> None:
    """Says what is left of the caller's time; None: it has set no limit."""
    _until.set(None if left_seconds is None else time.monotonic() + left_seconds)


def bounded(limit_seconds: float) -> float:
    """The limit, or what the caller's time allows if that is less."""
    until = _until.get()
    if until is None:
        return limit_seconds
    return min(limit_seconds, max(until - time.monotonic() - _ANSWER_SECONDS, _LEAST_SECONDS))
