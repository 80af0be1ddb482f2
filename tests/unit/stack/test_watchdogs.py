"""The states of a process, as the watchdogs read them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from evershell.stack.watchdogs import look_at
from tests.support.waiting import eventually

# The process waits in the kernel (state D) while its child waits for a writer of the pipe.
WAITS_IN_KERNEL = """
import os
opened = [(os.POSIX_SPAWN_OPEN, 9, "{pipe}", os.O_RDONLY, 0)]
os.waitpid(os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=opened), 0)
"""


@contextmanager
def running(code: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def is_blocked(process: psutil.Process) -> bool:
    sample = look_at(process.pid, "w", None)
    assert sample is not None
    return sample.is_blocked()


@pytest.mark.parametrize(
    ("code", "status", "blocked"),
    [
        ("import time; time.sleep(600)", psutil.STATUS_SLEEPING, True),
        ("while True: pass", psutil.STATUS_RUNNING, False),
    ],
)
def test_a_process_that_sleeps_is_blocked_and_one_that_runs_is_not(
    code: str, status: str, blocked: bool
) -> None:
    with running(code) as process:
        eventually(lambda: process.status() == status and is_blocked(process) is blocked)


def test_a_process_that_waits_for_a_disk_is_not_blocked(tmp_path: Path) -> None:
    """A process that waits for swapped memory is in the same state."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with running(WAITS_IN_KERNEL.format(pipe=pipe)) as process:
        eventually(lambda: process.status() == psutil.STATUS_DISK_SLEEP)
        assert not is_blocked(process)
        # Lets the child end.
        pipe.write_bytes(b"")
        eventually(lambda: not process.children())
