"""The deadline of the current call. It bounds every wait for the database or an agent."""

import time
from contextvars import ContextVar

# Reserved for sending the response before the deadline.
_ANSWER_SECONDS = 0.25
# The shortest wait. Even just before the deadline, a fast reply is still worth an attempt.
_LEAST_SECONDS = 0.1

_until: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(left_seconds: float | None) -> None:
    """Sets the time until the deadline, in seconds; None for a call without a deadline."""
    _until.set(None if left_seconds is None else time.monotonic() + left_seconds)


def bounded(limit_seconds: float) -> float:
    """The smaller of `limit_seconds` and the time left until the deadline."""
    until = _until.get()
    if until is None:
        return limit_seconds
    return min(limit_seconds, max(until - time.monotonic() - _ANSWER_SECONDS, _LEAST_SECONDS))
