"""Measures how long agents and workers waited for a processor, according to the kernel."""

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
    """How long the main threads were ready to run but did not run, in seconds."""

    agent: float
    # The average over the workers, some of which may have been replaced.
    worker: float


class _Wait(NamedTuple):
    # When the wait was measured, in seconds since 1970.
    ended: float
    seconds: float


class Waits:
    """Records how long agents and workers wait during a run."""

    def __init__(self, stack: Stack, workspace_ids: Sequence[str]) -> None:
        self._stack = stack
        self._workspace_ids = workspace_ids
        # The wait of each process since its start, by the file of its counter.
        self._totals: dict[Path, float] = {}
        # The waits by workspace id; the waits of workers under `workers`.
        self._waits: defaultdict[str, list[_Wait]] = defaultdict(list)

    async def follow(self) -> None:
        """Reads the counters until this call is cancelled."""
        while True:
            await asyncio.to_thread(self._read)
            await asyncio.sleep(_INTERVAL_SECONDS)

    def of(self, workspace_id: str, began: float, ended: float) -> Waited:
        """Returns the waits between two times."""
        return Waited(
            self._between(workspace_id, began, ended),
            self._between(_WORKERS, began, ended) / len(self._stack.worker_addresses()),
        )

    def _between(self, whom: str, began: float, ended: float) -> float:
        latest = ended + _INTERVAL_SECONDS
        return sum(each.seconds for each in self._waits[whom] if began <= each.ended <= latest)

    def _read(self) -> None:
        for whom, counter in self._counters():
            # The process may have ended.
            with suppress(OSError):
                # Linux counts, in nanoseconds, the time on a processor, then the time ready to run.
                _, waited, _ = counter.read_text().split()
                total = int(waited) / 1e9
                waited_since = total - self._totals.get(counter, 0.0)
                self._waits[whom].append(_Wait(time.time(), waited_since))
                self._totals[counter] = total

    def _counters(self) -> Iterator[tuple[str, Path]]:
        for workspace_id in self._workspace_ids:
            with suppress(OSError, ValueError):
                yield workspace_id, _counter(self._stack.agent_pid(workspace_id))
        for pid in self._stack.pids("serve"):
            yield _WORKERS, _counter(pid)


def _counter(pid: int) -> Path:
    return Path(f"/proc/{pid}/schedstat")
