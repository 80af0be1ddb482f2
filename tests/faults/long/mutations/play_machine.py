"""Plays the machine on the code that is first on the path, until it finds a broken promise."""

import sys
import traceback

from tests.faults.invariants.runs import run_in_memory

_EXAMPLES = 400
FOUND = 3


def main() -> None:
    """Prints where and how the promise is broken, and exits with FOUND."""
    try:
        run_in_memory(_EXAMPLES, is_shrunk=False)
    except AssertionError as error:
        places = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        print(" > ".join(places), error, sep="\n")
        sys.exit(FOUND)


if __name__ == "__main__":
    main()
