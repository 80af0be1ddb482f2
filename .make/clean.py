"""Removes the environment and, if asked for, the state of the stack.

Refuses while a stack runs, because the stack uses both folders. A running stack holds a lock on the
file `lock` in its state folder. A state folder without this file is kept: it may be another folder.
"""

import argparse
import fcntl
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Removes the folders, or exits with a message while a stack runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--with-state", action="store_true", help="remove the state as well")
    arguments = parser.parse_args()
    lock = arguments.state / "lock"
    if not lock.exists():
        shutil.rmtree(arguments.environment, ignore_errors=True)
        return
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(
                f"A stack is running on {arguments.state}. Stop it first; nothing was removed."
            )
        shutil.rmtree(arguments.environment, ignore_errors=True)
        if arguments.with_state:
            shutil.rmtree(arguments.state)
        else:
            print(
                f"{arguments.state} was kept: keys, database, logs. "
                "`make clean STATE=1` removes it as well."
            )


main()
