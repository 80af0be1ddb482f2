"""Random interleavings of all that may happen, on the real use cases, store, agents and controller,
against the invariants.

INVARIANT_EXAMPLES: how many runs in memory, new ones each time, and about a tenth of that on
PostgreSQL. Sessions race there, so a run may go another way than one that began alike, which
hypothesis does not take: a few have a seed, and what fails stays as it is.
"""

import os

import pytest

from tests.invariants.runs import run_in_memory, run_on_postgres

_EXAMPLES = int(os.environ.get("INVARIANT_EXAMPLES", "0"))


def test_invariants_hold_in_memory() -> None:
    # The same runs each time, unless a number of runs is set.
    run_in_memory(_EXAMPLES or 80, is_random=bool(_EXAMPLES))


@pytest.mark.parametrize("number", range(_EXAMPLES // 50 or 4))
def test_invariants_hold_on_postgres(database_url: str, number: int) -> None:
    run_on_postgres(database_url, number, is_random=bool(_EXAMPLES))
