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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import psutil

from evershell.fleet.local.scans import ProcessId, ScannedProcess, Scans, markers, scan
from evershell.pod.process import EPOCH_MARKER, STATE_DIR_MARKER, WORKSPACE_MARKER, wait_exit

_EPOCH = re.compile("[0-9]{1,19}")

# Returns those of the processes of a scan that some dead agent has left.
Leftovers: TypeAlias = Callable[[Sequence[ScannedProcess]], list[psutil.Process]]


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
        if scanned.id in self.agents:
            return True
        if scanned.markers.get(WORKSPACE_MARKER) != self.workspace_id:
            return False
        epoch = scanned.markers.get(EPOCH_MARKER, "")
        # A tool may have set any value. A value that is not an epoch does not exclude the process.
        return (
            self.last_epoch is None or not _EPOCH.fullmatch(epoch) or int(epoch) <= self.last_epoch
        )


@dataclass(frozen=True, slots=True)
class AllPods:
    """Owns the agents of all workspaces of one stack."""

    state_dir: Path

    def owns(self, scanned: ScannedProcess) -> bool:
        return scanned.markers.get(STATE_DIR_MARKER) == str(self.state_dir)


def find(owner: Owner, scanned: Sequence[ScannedProcess] | None = None) -> list[psutil.Process]:
    """Every process of the owner, parents before their children.

    Without `scanned`, scans the machine and blocks while it does.
    """
    found: dict[int, ScannedProcess] = {}
    children: defaultdict[int, list[ScannedProcess]] = defaultdict(list)
    for each in scan() if scanned is None else scanned:
        children[each.parent_pid].append(each)
        if owner.owns(each):
            found[each.id.pid] = each
    parents = list(found)
    while parents:
        for child in children[parents.pop()]:
            if child.id.pid not in found:
                found[child.id.pid] = child
                parents.append(child.id.pid)
    return sorted(_alive(each.id for each in found.values()), key=_age)


def _alive(ids: Iterable[ProcessId]) -> Iterator[psutil.Process]:
    for each in ids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(each.pid)
            # Checked after psutil has read the start time, because the id may be that of a later
            # process by now.
            if each.is_running():
                yield process


def is_of(pid: int, workspace_id: str, epoch: int) -> bool:
    """Whether the initial environment of the process has the markers of this pod."""
    found = markers(pid)
    return (found.get(WORKSPACE_MARKER), found.get(EPOCH_MARKER)) == (workspace_id, str(epoch))


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid


def leftovers(started: Collection[int], scanned: Sequence[ScannedProcess]) -> list[psutil.Process]:
    """The children of this process that it has not started itself. Reaps those that have ended."""
    own = os.getpid()
    found = [each.id for each in scanned if each.parent_pid == own and each.id.pid not in started]
    for each in found:
        if not each.is_running():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(each.pid, os.WNOHANG)
    return list(_alive(found))


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
    leftovers: Leftovers = lambda scanned: [],
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
        scanned = await scans()
        known.update(find(owner, scanned), leftovers(scanned))
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
    reap(pid)


def reap_all() -> None:
    """Reaps all children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def reap(pid: int) -> None:
    """Reaps the process if it is a child that has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
