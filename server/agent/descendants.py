"""The processes that descend from this one, however they have tried to get away."""

import asyncio
import ctypes
from collections.abc import Iterator
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_MAX_SWEEPS = 10


def adopt() -> None:
    """From here on a descendant whose parent ends becomes this process's own child, so that none gets out of sight.

    See PR_SET_CHILD_SUBREAPER in prctl(2): a new session, a cleared environment or a double fork change nothing about it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Descendants:
    """Those that come into being from here on."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))
        self._killed: set[psutil.Process] = set()

    def kill(self) -> None:
        """Ends them all, as far as the kernel lets them end."""
        # One may fork while the others are looked for, so look until there is none that was not there before.
        for _ in range(_MAX_SWEEPS):
            found = {process for process in self._living() if process not in self._killed}
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            if not found:
                return
            self._killed |= found

    async def gone(self, but: int, timeout_seconds: float) -> None:
        """Waits for those that were killed, and clears away whatever was adopted; `but` is waited for elsewhere."""
        adopted = set(psutil.Process().children()) - self._before
        awaited = [process for process in self._killed | adopted if process.pid != but]
        if awaited:
            await asyncio.to_thread(psutil.wait_procs, awaited, timeout_seconds)

    def _living(self) -> Iterator[psutil.Process]:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process not in self._before and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
