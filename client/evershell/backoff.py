"""How long to wait after a failure before the next attempt."""

import random


def backoff(failures: int, first: float, longest: float, spread: float = 1.0) -> float:
    """The pause after `failures` failures in a row, in seconds; 0 without a failure.

    The limit of the pause is `first` after the first failure. It doubles with each further failure,
    up to `longest`. The share `spread` of the limit is random, so that callers who failed at the
    same time do not all try again at the same time.
    """
    limit = min(first * 2.0 ** min(failures - 1, 60), longest) if failures else 0.0
    return random.uniform((1 - spread) * limit, limit)  # noqa: S311 # not a secret
