"""`python -m tests.faults.mutations [text]`: tests the rules whose names contain `text`.

Prints a line for each mutant. Exits 1 if a mutant has survived.
"""

import sys
import tempfile
from pathlib import Path

from tests.faults.mutations.rules import RULES
from tests.faults.mutations.runner import Outcome, run
from tests.support.checkout import copied_checkout


def main() -> None:
    """Runs the tests of each mutant and prints the results."""
    text = " ".join(sys.argv[1:])
    survived = count = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkout = copied_checkout(Path(folder) / "checkout")
        for outcome in run((each for each in RULES if text in each.name), checkout):
            print(line(outcome), flush=True)
            count += 1
            survived += not outcome.killed_by
    print(f"{count} mutants, {survived} survived")
    sys.exit(bool(survived))


def line(outcome: Outcome) -> str:
    """Formats the result of a mutant as one line."""
    mutant = outcome.mutant
    change = (
        f"{' '.join(mutant.text.split())} → {' '.join(mutant.replacement.split()) or 'nothing'}"
    )
    return " | ".join(
        (
            outcome.rule.name,
            f"{Path(mutant.path).name}: {change}",
            outcome.killed_by or "SURVIVED",
            f"{outcome.seconds:.0f} s",
        )
    )


if __name__ == "__main__":
    main()
