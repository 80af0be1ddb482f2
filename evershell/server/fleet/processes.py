"""Finds and ends the processes of a pod.

These are the processes with the pod's marker in their environment, and all their descendants. Only
the kernel is trusted: tools can forge a file that names a process, so no process is ended or spared
because of a file.

While an agent lives, all processes that it has started are its descendants, because an agent is a
subreaper (pod/process.py). When it dies, they become children of the controller that started the
agent, which is a subreaper too. A child that the controller has not started is such a leftover.
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

from evershell.server.pod.process import EPOCH_MARKER, STATE_DIR_MARKER, WORKSPACE_MARKER, wait_exit

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
    """State and start time, from proc_pid_stat(5). Raises OSError."""
    # The name of the process, in parentheses, may contain spaces and parentheses.
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return after_name[0], int(after_name[19])


@dataclass(frozen=True, slots=True)
class ScannedProcess:
    """A process as a scan found it."""

    process: psutil.Process
    parent_pid: int
    # Empty if it cannot be read.
    environment: Mapping[str, str]


def scan() -> list[ScannedProcess]:
    """Reads all processes of the machine. Blocks; on an event loop, use Scans."""
    scanned = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            scanned.append(ScannedProcess(process, process.ppid(), _environment(process)))
    return scanned


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


class Scans:
    """Scans in a thread, so that the event loop is not blocked. Runs one scan at a time.

    Callers that wait for the same scan share it. A caller never gets a scan that started before its
    call.
    """

    def __init__(self) -> None:
        self._scanning = asyncio.Lock()
        # A scan that has not started, which later callers join.
        self._next: asyncio.Task[list[ScannedProcess]] | None = None

    async def __call__(self) -> list[ScannedProcess]:
        """The processes of the machine."""
        if self._next is None:
            self._next = asyncio.create_task(self._scan())
        # The cancellation of one caller must not cancel the scan of the others.
        return await asyncio.shield(self._next)

    async def _scan(self) -> list[ScannedProcess]:
        async with self._scanning:
            self._next = None
            return await asyncio.to_thread(scan)


class Owner(Protocol):
    """Identifies the processes of one or several pods."""

    def owns(self, scanned: ScannedProcess) -> bool:
        """Whether the process belongs to one of the pods; its descendants then do too."""


@dataclass(frozen=True, slots=True)
class Pod:
    """Owns the processes of one workspace, by the marker in their environment."""

    workspace_id: str
    # Processes marked with a later epoch belong to another pod. None includes every epoch.
    last_epoch: int | None = None
    # Agents that this process has started. They are named because the environment of a process that
    # is just starting cannot be read.
    agents: Collection[ProcessId] = ()

    def owns(self, scanned: ScannedProcess) -> bool:
        if any(agent.pid == scanned.process.pid and agent.is_running() for agent in self.agents):
            return True
        environment = scanned.environment
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

    def owns(self, scanned: ScannedProcess) -> bool:
        return scanned.environment.get(STATE_DIR_MARKER) == str(self.state_dir)


def find(owner: Owner, scanned: Sequence[ScannedProcess] | None = None) -> list[psutil.Process]:
    """Every process of the owner, parents before their children.

    Without `scanned`, scans the machine and blocks while it does.
    """
    found: set[psutil.Process] = set()
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for each in scan() if scanned is None else scanned:
        children[each.parent_pid].append(each.process)
        if owner.owns(each):
            found.add(each.process)
    parents = list(found)
    while parents:
        descendants = set(children[parents.pop().pid]) - found
        found |= descendants
        parents += descendants
    return sorted(filter(_is_alive, found), key=_age)


def is_of(pid: int, workspace_id: str, epoch: int) -> bool:
    """Whether the initial environment of the process has the markers of this pod."""
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
    """The children of this process that it has not started itself. Reaps those that have ended."""
    found = [child for child in psutil.Process().children() if child.pid not in started]
    for child in found:
        if not _is_alive(child):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
    return [child for child in found if _is_alive(child)]


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _is_alive(process: psutil.Process) -> bool:
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
    """Ends every process of the owner, with SIGTERM first unless the grace is 0.

    Also ends the processes that `leftovers` returns, which may belong to any pod. Callers that end
    pods at the same time pass the same `scans`. Returns False if some processes still run.
    """
    scans = scans or Scans()
    known: set[psutil.Process] = set()

    async def find_alive() -> list[psutil.Process]:
        # Keeps the processes that were found before: one of them may be found only through its
        # parent, which may end first.
        known.update(find(owner, await scans()), leftovers())
        return sorted(filter(_is_alive, known), key=_age)

    if grace_seconds:
        processes = await find_alive()
        # SIGTERM goes only to the topmost processes, the agents, which end their tools themselves.
        # If a tool got it too, its agent could treat the tool's end as a normal exit and commit it.
        own = {process.pid for process in processes}
        _signal([process for process in processes if _parent(process) not in own], signal.SIGTERM)
        await _wait_exits(processes, grace_seconds)
    # Repeats, because processes that are ending may still start others. Scans a second time before
    # it returns, because the environment of a process that is just starting cannot be read.
    for _ in range(10):
        processes = await find_alive() or await find_alive()
        if not processes:
            return True
        _signal(processes, signal.SIGKILL)
        await _wait_exits(processes, 1.0)
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # psutil compares the start time, so it does not signal another process that has reused the
        # id.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


async def _wait_exits(processes: Iterable[psutil.Process], timeout_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await asyncio.gather(*(wait_exit_and_reap(process.pid) for process in processes))


async def wait_exit_and_reap(pid: int) -> None:
    """Returns when the process has ended, at once if no such process exists. Reaps a child."""
    await wait_exit(pid)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - WNOHANG does not wait
