"""How long to wait before something that has failed is tried again."""

import random


def backoff(failures: int, first: float, longest: float, spread: float = 1.0) -> float:
    """The pause after this many failures in a row, in seconds. There is none without a failure.

    It is at most `first` after the first failure, twice as long after each further one, and at most
    `longest`. The share `spread` of it is random, so that callers who failed together do not all
    come again together.
    """
    limit = min(first * 2.0 ** min(failures - 1, 60), longest) if failures else 0.0
    return random.uniform((1 - spread) * limit, limit)  # noqa: S311 # not a secret
