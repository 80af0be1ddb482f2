"""Ensures that one run at a time uses a state folder, and finds the process of that run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"
# Separate from the lock file, because it is written later: once the run handles SIGHUP.
_PID = "up.pid"


class TakenError(Exception):
    """Another run holds the state folder."""


@contextmanager
def exclusive(state_dir: Path) -> Iterator[None]:
    """Holds the state folder for this run. Raises TakenError."""
    with (state_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TakenError from error
        # A killed run leaves its file behind.
        (state_dir / _PID).unlink(missing_ok=True)
        try:
            yield
        finally:
            (state_dir / _PID).unlink(missing_ok=True)


def write_pid(state_dir: Path) -> None:
    """Records this process as the run. To be called once it handles SIGHUP."""
    (state_dir / _PID).write_text(f"{os.getpid()}\n")


def running_pid(state_dir: Path) -> int | None:
    """The process id of the run; None if there is no run or it is just starting. Ignores the file
    of a killed run.
    """
    try:
        with (state_dir / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:
        return None
    else:
        return None
    try:
        return int((state_dir / _PID).read_text())
    except (OSError, ValueError):
        return None
