"""`make spec`: prints a line for each property and each mutation. Exits 1 if a result is wrong."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.spec.model import NAMES, compiled, missing_program, model
from tests.spec.mutants import MUTANTS, Mutant


def main() -> None:
    """Searches all models and all mutations, in two threads."""
    if program := missing_program():
        sys.exit(f"{program} is not installed (Debian: apt-get install spin gcc)")
    began = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        models = [*threads.map(of_model, NAMES)]
        mutants = [*threads.map(of_mutant, MUTANTS)]
    wrong = sum(models) + sum(mutants)
    seconds = time.monotonic() - began
    print(f"{len(models)} models, {len(mutants)} mutations, {wrong} wrong, {seconds:.0f} s")
    sys.exit(bool(wrong))


def of_model(name: str) -> int:
    """Checks a model. Returns how many of its properties do not hold."""
    checked, broken = model(name), 0
    with compiled(checked) as checker:
        for each in checked.properties:
            began = time.monotonic()
            verdict = checker.check(each)
            broken += not verdict.holds
            result = "holds" if verdict.holds else "BROKEN"
            seconds = time.monotonic() - began
            print(f"{name} | {each.name} | {result} | {verdict.states:,} states | {seconds:.2f} s")
    return broken


def of_mutant(mutant: Mutant) -> int:
    """Checks a mutant. Returns 0 if its own property, and no other, finds it; otherwise 1."""
    found_by = findings(mutant)
    is_right = found_by == [mutant.found_by]
    result = "found" if is_right else f"WRONG: found by {', '.join(found_by) or 'none'}"
    print(f"{mutant.model} | {mutant.defect} | {mutant.found_by} | {result}")
    return not is_right


def findings(mutant: Mutant) -> list[str]:
    """Returns the names of the properties that find the mutant."""
    mutated = mutant.mutated
    with compiled(mutated) as checker:
        return [each.name for each in mutated.properties if not checker.check(each).holds]


if __name__ == "__main__":
    main()
