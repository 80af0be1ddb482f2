"""One run at a time for a state folder, and which process it is."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"
# Separate from the lock: written once the run takes signals.
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
        try:
            yield
        finally:
            (state_dir / _PID).unlink(missing_ok=True)


def write_pid(state_dir: Path) -> None:
    """Names this process as the run, from when it handles SIGHUP."""
    (state_dir / _PID).write_text(f"{os.getpid()}\n")


def running_pid(state_dir: Path) -> int | None:
    """The process of the run; None: there is none, or it is just starting. A file that a killed run left does not count."""
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
