"""The processes that descend from this one, however they have tried to get away."""

import asyncio
import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_MAX_SWEEPS = 10
# Where the kernel was built without them, every process of the machine is looked at, which takes a hundred times as long.
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()


def adopt() -> None:
    """From here on a descendant whose parent ends becomes this process's own child, so that none gets out of sight.

    See PR_SET_CHILD_SUBREAPER in prctl(2): a new session, a cleared environment or a double fork change nothing about it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Descendants:
    """Those that come into being from here on."""

    def __init__(self) -> None:
        self._before = _descendants()
        self._killed: set[psutil.Process] = set()

    def kill(self) -> None:
        """Ends them all, as far as the kernel lets them end."""
        # One may fork while the others are looked for, so look until there is none that was not there before.
        for _ in range(_MAX_SWEEPS):
            found = _descendants() - self._before - self._killed
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            if not found:
                return
            self._killed |= found

    async def gone(self, but: int, timeout_seconds: float) -> None:
        """Waits for those that were killed, and clears away whatever was adopted; `but` is waited for elsewhere."""
        while awaited := [process for process in _descendants() - self._before if process.pid != but]:
            await asyncio.to_thread(psutil.wait_procs, awaited, timeout_seconds)
            if not _descendants() - self._before - self._killed:
                return
            self.kill()


def _descendants() -> set[psutil.Process]:
    if not _KERNEL_LISTS_CHILDREN:
        return set(psutil.Process().children(recursive=True))
    found: set[psutil.Process] = set()
    left = [os.getpid()]
    while left:
        for pid in _children(left.pop()):
            with suppress(psutil.Error):
                found.add(psutil.Process(pid))
                left.append(pid)
    return found


def _children(pid: int) -> Iterator[int]:
    """See proc_pid_children(5). The list may miss a child while another one ends, so whoever kills looks again afterwards."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())
