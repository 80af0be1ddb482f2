"""`python -m evershell.histories FILE…`: judges the records in the files as one history.

Exits with 1 if the history is wrong.
"""

import sys
from pathlib import Path

from evershell.histories.judge import verdict


def main() -> None:
    """Prints each contradiction, and the verdict."""
    if not sys.argv[1:]:
        sys.exit("usage: python -m evershell.histories FILE…")
    text, contradictions = verdict(*map(Path, sys.argv[1:]))
    sys.stdout.write("\n".join([*contradictions, text, ""]))
    sys.exit(bool(contradictions))


if __name__ == "__main__":
    main()
