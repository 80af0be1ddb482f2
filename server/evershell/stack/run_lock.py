"""Lets only one run at a time use a state folder. Records the run's process and installation."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evershell.core.errors import OperatorError

_LOCK = "lock"
# The file with the process id of the run. It is not the lock file, because the run writes its id
# only once it handles SIGHUP, which is later than it takes the lock.
_PID = "up.pid"
# This file has the path of the Python interpreter that starts the programs of the run. Without the
# file, the run's own interpreter starts them.
_PYTHON = "up.python"


@contextmanager
def exclusive(state_dir: Path) -> Iterator[None]:
    """Holds the state folder for this run. Raises OperatorError if another run holds it."""
    with (state_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = (
                f"Another run uses {state_dir}. "
                "Stop it, or set STATE_DIR and other ports to start a second one."
            )
            raise OperatorError(message) from error
        # A killed run does not remove its files.
        (state_dir / _PID).unlink(missing_ok=True)
        (state_dir / _PYTHON).unlink(missing_ok=True)
        try:
            yield
        finally:
            (state_dir / _PID).unlink(missing_ok=True)
            # A forked child also has the file open until it executes its program, so closing the
            # file might not release the lock.
            fcntl.flock(lock, fcntl.LOCK_UN)


def write_pid(state_dir: Path) -> None:
    """Records this process as the run. Call it only once the run handles SIGHUP."""
    (state_dir / _PID).write_text(f"{os.getpid()}\n")


def running_pid(state_dir: Path) -> int | None:
    """The process id of the run; None if there is no run or it does not handle SIGHUP yet.

    Takes no lock, so it cannot make a starting run fail.
    """
    try:
        pid = int((state_dir / _PID).read_text())
        return pid if _holds_lock(pid, state_dir / _LOCK) else None
    except (OSError, ValueError):
        return None


def choose_installation(state_dir: Path) -> None:
    """Makes the run start its programs from the installation of this process from now on."""
    chosen = state_dir / f"next-{_PYTHON}"
    chosen.write_text(sys.executable)
    chosen.replace(state_dir / _PYTHON)


def command(state_dir: Path, *arguments: str) -> list[str]:
    """The command line of a program. The most recently chosen installation runs it."""
    chosen = state_dir / _PYTHON
    python = chosen.read_text() if chosen.exists() else sys.executable
    return [python, "-m", "evershell.commands", *arguments]


def _holds_lock(pid: int, path: Path) -> bool:
    """Whether the process holds the lock, according to the kernel. Raises OSError.

    The id in the file of a killed run may belong to another process by now.
    """
    lock = path.stat()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not os.path.samestat(entry.stat(), lock):
                continue
            # This file lists the locks of an open file: proc_pid_fdinfo(5).
            if "FLOCK" in Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text():
                return True
        except FileNotFoundError:
            # The process has just closed the file.
            continue
    return False
