"""When a failed call is made again."""

import random
from collections.abc import Callable
from typing import Any

from evershell.client._calls import Call
from evershell.client._fields import LONGEST_SECONDS
from evershell.client._options import Options
from evershell.client.errors import CallError, RateLimitedError, UnavailableError

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0


class Attempts:
    """The attempts of one call."""

    def __init__(self, call: Call[Any], options: Options, monotonic: Callable[[], float]) -> None:
        self._can_repeat = call.can_repeat
        self._max_retries = options.max_retries
        self._monotonic = monotonic
        self._deadline = monotonic() + options.timeout_of(call.rpc) + call.extra_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        """The time that is left for the call."""
        return min(max(self._deadline - self._monotonic(), 0.0), LONGEST_SECONDS)

    def pause_seconds(self, error: CallError) -> float:
        """The time to wait before the next attempt. Raises the error if there is none."""
        self._failures += 1
        pause = backoff_seconds(self._failures, error)
        if (
            not self._can_repeat
            # Not AgentUnreachableError, because that cancellation is recorded.
            or not isinstance(error, UnavailableError | RateLimitedError)
            or self._failures > self._max_retries
            or pause >= self.remaining_seconds()
        ):
            raise error
        return pause


def backoff_seconds(failures: int, error: CallError) -> float:
    """The time that the service asked for, else an exponential backoff with jitter."""
    if error.retry_after is not None:
        return error.retry_after
    limit = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10), MAX_BACKOFF_SECONDS)
    return random.uniform(limit / 2, limit)  # noqa: S311 # jitter, not a secret
