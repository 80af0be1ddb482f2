"""Tests the invariants with random interleavings of actions.

The use cases, store, agents and controller are real. INVARIANT_EXAMPLES sets the number of runs in
memory and the number of runs of trees. If it is set, the runs in memory differ each time. The other
tests on PostgreSQL make about a tenth of that number of runs. In these tests, sessions race, so the
same steps can have different results, which Hypothesis does not support. Therefore each group of a
few runs has its own seed, and failures are not shrunk.
"""

import os

import pytest

from tests.faults.invariants.runs import (
    run_deletions_in_memory,
    run_deletions_on_postgres,
    run_in_memory,
    run_on_postgres,
    run_trees,
)

_EXAMPLES = int(os.environ.get("INVARIANT_EXAMPLES", "0"))

# The time limit in seconds. A run takes half a second on a busy machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(max(120, 2 * _EXAMPLES))]


def test_invariants_hold_in_memory() -> None:
    # The runs are the same every time, unless INVARIANT_EXAMPLES is set.
    run_in_memory(_EXAMPLES or 80, is_random=bool(_EXAMPLES))


@pytest.mark.parametrize("number", range(_EXAMPLES // 50 or 4))
def test_invariants_hold_on_postgres(database_url: str, number: int) -> None:
    run_on_postgres(database_url, number, is_random=bool(_EXAMPLES))


def test_invariants_hold_with_deletions_in_memory() -> None:
    run_deletions_in_memory(_EXAMPLES or 40, is_random=bool(_EXAMPLES))


@pytest.mark.parametrize("number", range(_EXAMPLES // 100 or 2))
def test_invariants_hold_with_deletions_on_postgres(database_url: str, number: int) -> None:
    run_deletions_on_postgres(database_url, number, is_random=bool(_EXAMPLES))


def test_trees_on_postgres(database_url: str) -> None:
    run_trees(database_url, _EXAMPLES or 60)
