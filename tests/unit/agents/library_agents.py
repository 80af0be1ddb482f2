"""Functions that the tests of in_thread and in_process run in other threads and processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.alive import is_alive


def double(number: int) -> int:
    print("printed by the function")
    return 2 * number


def refuse(text: str) -> None:
    raise ValueError(text)


def die() -> None:
    sys.stdout.flush()
    os._exit(3)


def own_class() -> object:
    """Returns an object that cannot be pickled."""
    return lambda: None


def hang(folder: Path) -> None:
    """Starts a child in another session, writes the ids of both processes, and hangs."""
    child = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    write_ids(folder, os.getpid(), child.pid)
    time.sleep(600)


def run_child(folder: Path) -> int:
    """Starts a child, and blocks until the child ends."""
    child = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    write_ids(folder, child.pid)
    return child.wait()


def write_ids(folder: Path, *pids: int) -> None:
    """Writes the ids to the file in one step, so that no reader sees a part of them."""
    (folder / "new").write_text(" ".join(map(str, pids)))
    (folder / "new").rename(folder / "pids")


def are_alive(folder: Path) -> bool:
    """Whether any of the processes whose ids were written is running."""
    pids = map(int, (folder / "pids").read_text().split())
    return any(map(is_alive, pids))
