"""The arrival time and the deadline of the current call. Both limit how long the call waits."""

import time
from contextvars import ContextVar

# Reserved for sending the response before the deadline.
_ANSWER_SECONDS = 0.25
# The shortest wait. Even just before the deadline, an attempt may still get a fast reply.
_LEAST_SECONDS = 0.1

_arrived: ContextVar[float | None] = ContextVar("arrival", default=None)
_until: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(left_seconds: float | None, waited_seconds: float = 0.0) -> None:
    """Sets the arrival time and the deadline of the current call.

    `left_seconds` is the time until the deadline; None for a call without a deadline.
    `waited_seconds` is the time since its arrival.
    """
    _arrived.set(time.monotonic() - waited_seconds)
    _until.set(None if left_seconds is None else time.monotonic() + left_seconds)


def bounded(limit_seconds: float) -> float:
    """How long to wait: `limit_seconds`, or less if the deadline comes earlier.

    Before the deadline, reserves _ANSWER_SECONDS for the response. The result is at least
    _LEAST_SECONDS, unless `limit_seconds` is less.
    """
    until = _until.get()
    if until is None:
        return limit_seconds
    return min(limit_seconds, max(until - time.monotonic() - _ANSWER_SECONDS, _LEAST_SECONDS))


def left_of_call(limit_seconds: float, least_seconds: float) -> float:
    """`limit_seconds` minus the time since the call arrived, but at least `least_seconds`.

    Outside of a call, this is `limit_seconds`. The deadline limits the result as in `bounded`.
    """
    arrived = _arrived.get()
    if arrived is not None:
        limit_seconds = max(arrived + limit_seconds - time.monotonic(), least_seconds)
    return bounded(limit_seconds)
