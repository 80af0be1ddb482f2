"""Uses up processor time as a busy neighbour does: with processes that are always ready to run.

Run as a script, it takes the number of processes, the seconds after which they end by themselves,
and the process id of the parent.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_END_SECONDS = 30.0


@contextmanager
def hog(processes: int, limit_seconds: float) -> Iterator[int]:
    """Keeps `processes` processes runnable inside the block. Yields the id of their process group.

    They end with the block, with this process, or after `limit_seconds`.
    """
    with subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-E",
            __file__,
            str(processes),
            str(limit_seconds),
            str(os.getpid()),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as first:
        try:
            assert first.stdout is not None
            # Waits until all processes run.
            first.stdout.read(1)
            yield first.pid
        finally:
            # The first process is not reaped yet, so its process group still exists.
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(_END_SECONDS)


def _main(processes: int, limit_seconds: float, parent: int) -> None:
    until = time.monotonic() + limit_seconds
    _end_with(parent)
    first = os.getpid()
    for _ in range(processes - 1):
        if not os.fork():
            _end_with(first)
            break
    else:
        os.write(1, b".")
    while time.monotonic() < until:
        pass


def _end_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has ended")


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
