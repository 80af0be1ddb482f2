"""The processes that descend from this one, however they have tried to get away: it has to have
adopted them (pod_process.py).
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

# How long the agent does nothing but kill before it lets others do something.
_SWEEPING_SECONDS = 0.2
_LAST_LOOKS = 3
_POLL_SECONDS = 0.005
# Where the kernel was built without them, every process of the machine is looked at, which takes a
# hundred times as long.
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()


class Descendants:
    """Those that come into being from here on.

    A child that is killed leaves its own children to this process, so whoever goes on killing its
    children has in the end ended all that descends from them. And nobody else gets the number of a
    child that was not waited for, so no stranger is hit.
    """

    def __init__(self) -> None:
        self._before = set(_children())
        self._killed: set[int] = set()

    def kill(self, but: int | None = None) -> None:
        """Ends them all, as far as the kernel lets them end. `but` is waited for elsewhere; None:
        all of them are.
        """
        until = time.monotonic() + _SWEEPING_SECONDS
        looks = 0
        # Between finding and killing one there is time for next to nothing: some fork and exit for
        # no other end than to be missed.
        while looks < _LAST_LOOKS and time.monotonic() < until:
            found = self._children()
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self._killed.update(found)
            if but is not None:
                self.clear_away(but)
            looks = 0 if any(map(_lives, found)) else looks + 1

    def clear_away(self, but: int) -> None:
        """Waits for those that have ended: until then each takes one of the machine's process
        numbers.
        """
        for pid in self._children():
            if pid != but:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)

    async def gone(self, but: int, timeout_seconds: float) -> None:
        """Ends them and waits for their end, as long as there are new ones; for what hangs in the
        kernel, no longer than this.
        """
        until = time.monotonic() + timeout_seconds
        while left := [pid for pid in self._children() if pid != but]:
            if not self._killed.issuperset(left):
                until = time.monotonic() + timeout_seconds
            elif time.monotonic() > until:
                return
            self.kill(but)
            await asyncio.sleep(_POLL_SECONDS)

    def _children(self) -> list[int]:
        """The latest first: those that ended long ago can wait."""
        return [pid for pid in reversed(list(_children())) if pid not in self._before]


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _children() -> Iterator[int]:
    """See proc_pid_children(5). The list may miss a child while another one ends, so whoever kills
    looks again afterwards.
    """
    if not _KERNEL_LISTS_CHILDREN:
        yield from (child.pid for child in psutil.Process().children())
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            yield from map(int, (thread / "children").read_text().split())
