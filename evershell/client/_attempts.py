"""When a failed call is made again."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from evershell.client._calls import Repeat
from evershell.client.errors import CallError, RateLimitedError, UnavailableError

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `with_options` changes."""

    # For each call, with its retries.
    timeout: float = 10.0
    max_retries: int = 3
    traceparent: str | None = None


class Attempts:
    """The attempts of one call."""

    def __init__(
        self,
        repeat: Repeat,
        options: Options,
        monotonic: Callable[[], float],
        extra_seconds: float = 0.0,
    ) -> None:
        self._repeat = repeat
        self._max_retries = options.max_retries
        self._monotonic = monotonic
        self._deadline = monotonic() + options.timeout + extra_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        """The time that is left for the call."""
        return max(self._deadline - self._monotonic(), 0.0)

    def pause_seconds(self, error: CallError) -> float:
        """The time to wait before the next attempt. Raises the error if there is none."""
        self._failures += 1
        pause = backoff_seconds(self._failures, error)
        if (
            not _may_repeat(self._repeat, error)
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


def _may_repeat(repeat: Repeat, error: CallError) -> bool:
    # Not AgentUnreachableError, because that cancellation is recorded.
    if repeat is Repeat.ALWAYS:
        return isinstance(error, UnavailableError | RateLimitedError)
    return repeat is Repeat.WITHOUT_EFFECT and isinstance(error, RateLimitedError)
