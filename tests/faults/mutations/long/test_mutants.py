"""The tests of each rule fail with its mutants. `make test-exhaustive` tries only a few rules."""

from pathlib import Path

import pytest

from tests.faults.mutations.mutants import Rule
from tests.faults.mutations.rules import RULES
from tests.faults.mutations.runner import run
from tests.support.checkout import copied_checkout

# One rule whose mutants are in the core, and one whose mutant is in SQL.
_OF_EVERY_CHANGE = ("a recorded intent decides the end", "an intent belongs to a task")
# The time limit in seconds. A rule has up to eight mutants, and its tests need a database.
pytestmark = pytest.mark.timeout(1_800)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_checkout(tmp_path_factory.mktemp("mutants") / "checkout")


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(
            each, id=each.name, marks=() if each.name in _OF_EVERY_CHANGE else pytest.mark.soak
        )
        for each in RULES
    ],
)
def test_no_mutant_of_a_rule_survives(rule: Rule, checkout: Path) -> None:
    survivors = [each.mutant for each in run([rule], checkout) if not each.killed_by]
    assert survivors == []
