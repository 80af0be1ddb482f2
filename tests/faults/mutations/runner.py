"""Applies one mutant after another to a copy of the checkout, and runs the tests of its rule."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.mutations.mutants import Rule
from tests.support.checkout import Edit, apply
from tests.support.stack import environment_of

# The time limit of a test, because a mutant may make a test wait for ever.
_TEST_SECONDS = 120
_PYTEST = ("-m", "pytest", "-x", f"--timeout={_TEST_SECONDS}")
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict of a rule's tests on a mutant."""

    rule: Rule
    mutant: Edit
    # The test that failed, or how pytest ended without a failed test; empty if the mutant survived.
    killed_by: str
    seconds: float


class BrokenCopyError(Exception):
    """Raised if a test that a mutant made fail also fails without the mutant."""


def run(rules: Iterable[Rule], checkout: Path) -> Iterator[Outcome]:
    """Runs the tests of each mutant in the copy, and yields the outcomes. Raises BrokenCopyError.

    At the end, each test that failed with a mutant must pass without mutants.
    """
    killers: set[str] = set()
    for each in rules:
        for mutant in each.mutants:
            outcome = _outcome(each, mutant, checkout)
            if "::" in outcome.killed_by:
                killers.add(outcome.killed_by)
            yield outcome
    if failed := _first_failure(sorted(killers), checkout):
        raise BrokenCopyError(f"{failed} fails without a mutant too")


def _outcome(rule: Rule, mutant: Edit, checkout: Path) -> Outcome:
    began = time.monotonic()
    path = checkout / mutant.path
    original = path.read_text()
    apply(mutant, checkout)
    try:
        killed_by = _first_failure(rule.tests, checkout)
    finally:
        path.write_text(original)
    return Outcome(rule, mutant, killed_by, time.monotonic() - began)


def _first_failure(tests: Sequence[str], checkout: Path) -> str:
    """The first test that fails, or how pytest ended without one; empty if all pass."""
    if not tests:
        return ""
    done = subprocess.run(
        [sys.executable, *_PYTEST, *tests],
        cwd=checkout,
        # Bytecode is off: Python would use a mutant's .pyc for another mutant with the same size
        # and mtime.
        env={**os.environ, **environment_of(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    found = _FAILED.search(done.stdout)
    return found[1] if found else f"exit code {done.returncode} of pytest"
