"""Processes of a pod: those with its marker in their environment, and all descendants of these.

Only the kernel is trusted here. Tools can forge a file that names a process, so no process is ended
or spared because of a file.

While the agent lives, nothing that it has started is out of its descent (agent/descendants.py).
When it dies, that descent passes to the controller that started it, which has to have adopted it
(pod/process.py): a child of its own that it has not started is such a leftover.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from server.pod.process import EPOCH_MARKER, STATE_DIR_MARKER, WORKSPACE_MARKER, wait_exit

_EPOCH = re.compile("[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Identifies one process while the machine is up.

    The kernel may reuse the id of a process that has ended, but the new process has a later start
    time.
    """

    pid: int
    # Clock ticks since the machine's start (proc_pid_stat(5)).
    started_at: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """The process that has this id now. Raises OSError."""
        return cls(pid, _stat(pid)[1])

    def is_running(self) -> bool:
        """Whether the process has not ended. A zombie has ended."""
        try:
            state, started_at = _stat(self.pid)
        except OSError:
            return False
        return started_at == self.started_at and state not in "ZX"


def _stat(pid: int) -> tuple[str, int]:
    """State and start time."""
    behind_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return behind_the_name[0], int(behind_the_name[19])


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as a scan found it."""

    process: psutil.Process
    parent_pid: int
    # Empty if it cannot be read.
    environment: Mapping[str, str]


def scan() -> list[Seen]:
    """Reads all processes of the machine. Blocks: on an event loop, use Scans."""
    seen = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            seen.append(Seen(process, process.ppid(), _environment(process)))
    return seen


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


class Scans:
    """Scans in a thread, one at a time, so that the event loop goes on.

    Callers that wait at the same time share a scan. It starts after all of them have asked.
    """

    def __init__(self) -> None:
        self._scanning = asyncio.Lock()
        # A scan that has not started, which later callers may join.
        self._next: asyncio.Task[list[Seen]] | None = None

    async def __call__(self) -> list[Seen]:
        """The processes of the machine."""
        if self._next is None:
            self._next = asyncio.create_task(self._scan())
        # A caller that is cancelled must not cancel the scan of the others.
        return await asyncio.shield(self._next)

    async def _scan(self) -> list[Seen]:
        async with self._scanning:
            self._next = None
            return await asyncio.to_thread(scan)


class Owner(Protocol):
    """Identifies the processes of one or several pods."""

    def owns(self, seen: Seen) -> bool:
        """Whether the process, and therefore its descendants, belong to a pod."""


@dataclass(frozen=True, slots=True)
class Pod:
    """Owns the processes of one workspace, by the marker in their environment."""

    workspace_id: str
    # Processes marked with a later epoch belong to another pod. None stands for every epoch.
    last_epoch: int | None = None
    # Agents that this process has started. The environment of a process that is just starting
    # cannot be read.
    agents: Collection[ProcessId] = ()

    def owns(self, seen: Seen) -> bool:
        """See Owner."""
        if any(agent.pid == seen.process.pid and agent.is_running() for agent in self.agents):
            return True
        environment = seen.environment
        if environment.get(WORKSPACE_MARKER) != self.workspace_id:
            return False
        epoch = environment.get(EPOCH_MARKER, "")
        # A tool may have set any value. A value that is not an epoch does not exclude the process.
        return (
            self.last_epoch is None or not _EPOCH.fullmatch(epoch) or int(epoch) <= self.last_epoch
        )


@dataclass(frozen=True, slots=True)
class AllPods:
    """Owns the agents of all workspaces of one stack."""

    state_dir: Path

    def owns(self, seen: Seen) -> bool:
        """See Owner."""
        return seen.environment.get(STATE_DIR_MARKER) == str(self.state_dir)


def find(owner: Owner, scanned: Sequence[Seen] | None = None) -> list[psutil.Process]:
    """Every process of the owner, parents before their children. Scans if nothing was scanned
    before, and then blocks.
    """
    found: set[psutil.Process] = set()
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for seen in scan() if scanned is None else scanned:
        children[seen.parent_pid].append(seen.process)
        if owner.owns(seen):
            found.add(seen.process)
    parents = list(found)
    while parents:
        descendants = set(children[parents.pop().pid]) - found
        found |= descendants
        parents += descendants
    return sorted(filter(_lives, found), key=_age)


def is_of(pid: int, workspace_id: str, epoch: int) -> bool:
    """Whether the environment that the process was started with names this workspace and epoch."""
    try:
        environment = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return False
    return environment.get(WORKSPACE_MARKER) == workspace_id and environment.get(
        EPOCH_MARKER
    ) == str(epoch)


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid


def leftovers(started: Collection[int]) -> list[psutil.Process]:
    """The children of this process that it has not started itself; those of them that have ended
    are cleared away.
    """
    found = [child for child in psutil.Process().children() if child.pid not in started]
    for child in found:
        if not _lives(child):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
    return [child for child in found if _lives(child)]


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


async def end_all(
    owner: Owner,
    grace_seconds: float,
    leftovers: Callable[[], list[psutil.Process]] = list,
    scans: Scans | None = None,
) -> bool:
    """Ends every process of the owner, with SIGTERM first unless the grace is 0. Returns False if
    some are still there.

    Ends the processes that `leftovers` returns too; they may belong to any pod. Callers that end
    pods at the same time pass the same `scans`.
    """
    scans = scans or Scans()
    known: set[psutil.Process] = set()

    async def look() -> list[psutil.Process]:
        # Remembers what was found: a process may be found only through another one, which may end
        # first.
        known.update(find(owner, await scans()), leftovers())
        return sorted(filter(_lives, known), key=_age)

    if grace_seconds:
        processes = await look()
        # SIGTERM goes to the topmost processes, the agents, which end their tools themselves. If
        # tools got it too, an agent could take their end for a normal exit and commit it.
        own = {process.pid for process in processes}
        _signal([process for process in processes if _parent(process) not in own], signal.SIGTERM)
        await _wait_gone(processes, grace_seconds)
    # Repeated, because processes that are ending may still start others. Each look is done twice if
    # it finds nothing, because the environment of a process that is just starting cannot be read.
    for _ in range(10):
        processes = await look() or await look()
        if not processes:
            return True
        _signal(processes, signal.SIGKILL)
        await _wait_gone(processes, 1.0)
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # psutil compares the start time, so a number that was given to another process since is
        # left alone.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


async def _wait_gone(processes: Iterable[psutil.Process], timeout_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await asyncio.gather(*(gone(process.pid) for process in processes))


async def gone(pid: int) -> None:
    """Returns when the process has ended, at once if there is none. Reaps a child."""
    await wait_exit(pid)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - WNOHANG does not wait
