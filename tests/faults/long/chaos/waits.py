"""How long agents and workers have waited for a processor, as the kernel counts it."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.stack import Stack

_INTERVAL_SECONDS = 0.5
_WORKERS = "workers"


class Waited(NamedTuple):
    """How long a main thread was ready to run and did not run, in seconds."""

    agent: float
    # Of the worker that waited least.
    worker: float


class _Wait(NamedTuple):
    # Since 1970.
    ended: float
    seconds: float


class Waits:
    """The waits of a run."""

    def __init__(self, stack: Stack, workspace_ids: Sequence[str]) -> None:
        self._stack = stack
        self._workspace_ids = workspace_ids
        # Since the start of each process.
        self._totals: dict[Path, float] = {}
        # By workspace id or `workers`, and by the counter of a process.
        self._waits: defaultdict[str, defaultdict[Path, list[_Wait]]] = defaultdict(
            lambda: defaultdict(list)
        )

    async def follow(self) -> None:
        """Reads the counters until it is cancelled."""
        while True:
            await asyncio.to_thread(self._read)
            await asyncio.sleep(_INTERVAL_SECONDS)

    def of(self, workspace_id: str, began: float, ended: float) -> Waited:
        """The waits between two times."""
        agent = self._between(workspace_id, began, ended)
        return Waited(
            max(agent, default=0.0), min(self._between(_WORKERS, began, ended), default=0.0)
        )

    def _between(self, whom: str, began: float, ended: float) -> list[float]:
        """For each process that has run then."""
        found = (
            [wait.seconds for wait in waits if began <= wait.ended <= ended + _INTERVAL_SECONDS]
            for waits in self._waits[whom].values()
        )
        return [sum(seconds) for seconds in found if seconds]

    def _read(self) -> None:
        for whom, counter in self._counters():
            # The process may have ended.
            with suppress(OSError):
                # sched-stats of Linux: time on a processor, time ready to run, in nanoseconds.
                _, waited, _ = counter.read_text().split()
                total = int(waited) / 1e9
                wait = _Wait(time.time(), total - self._totals.get(counter, total))
                self._waits[whom][counter].append(wait)
                self._totals[counter] = total

    def _counters(self) -> Iterator[tuple[str, Path]]:
        for workspace_id in self._workspace_ids:
            with suppress(OSError, ValueError):
                yield workspace_id, _counter(self._stack.agent_pid(workspace_id))
        for pid in self._stack.pids("serve"):
            yield _WORKERS, _counter(pid)


def _counter(pid: int) -> Path:
    return Path(f"/proc/{pid}/schedstat")
