"""Counts the attacks of the table that this test run has made, and those that got through."""

from collections import defaultdict
from collections.abc import Mapping

import pytest

from tests.faults.long.attacks.attack_table import ROWS, Row

# The outcomes of the tests of this run, by their path below tests/ and their full name.
_outcomes: dict[str, set[str]] = defaultdict(set)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that was skipped has made no attack."""
    if report.when == "call" or report.failed:
        _outcomes[report.nodeid.removeprefix("tests/")].add(report.outcome)


def outcomes_of(row: Row, outcomes: Mapping[str, set[str]]) -> set[str]:
    """The outcomes of the tests that make this attack."""
    found: set[str] = set()
    for name, reported in outcomes.items():
        test, _, parameters = name.partition("[")
        # The attack is the last parameter of a test.
        is_made = not row.is_parameter or f"-{parameters}".endswith(f"-{row.attack}]")
        if test == row.test and is_made:
            found |= reported
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    made = [outcomes for row in ROWS if (outcomes := outcomes_of(row, _outcomes)) - {"skipped"}]
    through = sum("failed" in outcomes for outcomes in made)
    terminalreporter.line(
        f"attacks in the table: {len(ROWS)}, made in this run: {len(made)}, through: {through}",
        red=through > 0,
    )
