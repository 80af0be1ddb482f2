"""`python -m tests.histories FILE…`: judges the files as one history. Exits 1 if it is wrong."""

import sys
from pathlib import Path

from tests.histories.judge import judge, size
from tests.histories.lines import read


def main() -> None:
    """Prints each contradiction, and what the history has."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m tests.histories FILE…")
    history = read(map(Path, sys.argv[1:]))
    found = judge(history)
    for each in found:
        print(each)
    print(f"{size(history)}: {f'{len(found)} CONTRADICTIONS' if found else 'right'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
