"""The list of rules matches the checkout."""

from tests.faults.mutations.rules import RULES
from tests.support.stack import ROOT


def test_the_text_of_each_mutant_is_there_once() -> None:
    counts = {
        mutant: (ROOT / mutant.path).read_text().count(mutant.text)
        for each in RULES
        for mutant in each.mutants
    }
    assert {mutant: count for mutant, count in counts.items() if count != 1} == {}


def test_the_tests_of_each_rule_exist() -> None:
    named = {path.partition("::")[0] for each in RULES for path in each.tests}
    assert {path for path in named if not (ROOT / path).exists()} == set()
