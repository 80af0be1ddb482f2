"""Finds and kills the descendants of this process, which must be a subreaper (pod/process.py)."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from evershell.pod.process import ANY_CHILD, has_ended_child

# How long `kill` may block the event loop.
_BLOCKING_SECONDS = 0.2
# The number of scans without a living child after which `kill` is done.
_LAST_SCANS = 3
# Whether the kernel was built with the option to list the children of each thread in a file.
# Without these files, all processes of the machine are scanned, which takes 100 times as long.
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()
# Contains a folder for each thread of this process. The file `children` in it lists the children of
# the thread. It is read without pathlib, which would take three times as long.
_THREADS = "/proc/self/task"


class Descendants:
    """All descendants that were started after this object was created.

    The children of a killed child become children of this process, so killing children repeatedly
    reaches all descendants. The kernel does not reuse the id of a child before it is reaped, so no
    other process is killed.
    """

    def __init__(self) -> None:
        self._before = set(_children())
        self._killed: set[int] = set()

    def kill(self, spare_pid: int | None = None) -> None:
        """Kills all descendants, and reaps them except `spare_pid`, which is reaped elsewhere.

        If `spare_pid` is None, all of them are reaped elsewhere.
        """
        until = time.monotonic() + _BLOCKING_SECONDS
        scans = 0
        # Blocks the event loop on purpose: a process that forks and exits in a loop escapes if
        # there is time between finding and killing it.
        while scans < _LAST_SCANS and time.monotonic() < until:
            found = self._children()
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._killed.update(found)
            if spare_pid is not None:
                self.reap(spare_pid)
            scans = 0 if any(map(_is_running, found)) else scans + 1

    def reap(self, spare_pid: int) -> None:
        """Reaps the children that have ended, except `spare_pid`.

        Each zombie takes one of the machine's process ids.
        """
        # During a tool call, usually no child has ended. Reading the list of children takes 200
        # times as long as this check.
        if not has_ended_child():
            return
        for pid in self._children():
            if pid != spare_pid:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)

    async def wait_gone(self, spare_pid: int, timeout_seconds: float) -> None:
        """Kills all descendants until only `spare_pid` is left, which is reaped elsewhere.

        Gives up after the timeout if only processes that hang in the kernel are left.
        """
        until = time.monotonic() + timeout_seconds
        while left := [pid for pid in self._children() if pid != spare_pid]:
            if not self._killed.issuperset(left):
                until = time.monotonic() + timeout_seconds
            elif time.monotonic() > until:
                return
            self.kill(spare_pid)
            await asyncio.sleep(0.005)

    def _children(self) -> list[int]:
        """The children, newest first."""
        return [pid for pid in reversed(list(_children())) if pid not in self._before]


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _has_children() -> bool:
    """Whether this process has a child, dead or alive.

    The kernel's answer is true for a single moment. A descendant that is alive at that moment is a
    child or has an ancestor among the children, because orphans become children of this process.
    """
    try:
        os.waitid(os.P_ALL, 0, ANY_CHILD)
    except ChildProcessError:
        return False
    return True


def _children() -> Iterator[int]:
    """The ids of the children.

    The kernel's list may miss a child while another one ends (proc_pid_children(5)), so scan again
    after killing.
    """
    # Checked first, because after most tool calls no child is left, and reading the lists of all
    # threads takes half a millisecond.
    if not _has_children():
        return
    if not _KERNEL_LISTS_CHILDREN:
        # Imported here, because it takes 20 ms and 2 MB.
        import psutil

        yield from (child.pid for child in psutil.Process().children())
        return
    with os.scandir(_THREADS) as threads:
        for thread in threads:
            with suppress(OSError), open(f"{thread.path}/children", "rb", 0) as found:  # noqa: PTH123
                yield from map(int, found.read().split())
