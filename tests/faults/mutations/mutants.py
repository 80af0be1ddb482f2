"""The parts of a rule: its name, its tests, and the mutants that break it."""

from dataclasses import dataclass

from tests.support.checkout import Edit


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the contract."""

    name: str
    # The files or folders of tests that must fail with each of the mutants.
    tests: tuple[str, ...]
    mutants: tuple[Edit, ...]


def rule(name: str, tests: str, *edits: tuple[str, str, str]) -> Rule:
    """Builds a rule with a mutant for each edit. Spaces separate the items of `tests`."""
    return Rule(name, tuple(tests.split()), tuple(Edit(*each) for each in edits))
