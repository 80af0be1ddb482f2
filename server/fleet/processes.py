"""Processes of a pod: those of its agent's session, those with a marker in their environment, and whatever descends from these.

While the agent lives, nothing that it has started is out of its descent (agent/descendants.py). When it dies, that descent passes
to the controller that started it, which has to have adopted it (pod_process.py): a child of its own that it has not started is such
a leftover.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import psutil

from server.pod_process import EPOCH_MARKER, WORKSPACE_MARKER

_EPOCH = re.compile("[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Pod:
    """What tells its processes: they belong to this workspace, or to its agent's session, where that is known."""

    workspace_id: str
    session_id: int | None = None
    # Processes marked with a later epoch are another pod's. None: those of every epoch are meant.
    last_epoch: int | None = None


def find(*pods: Pod) -> list[psutil.Process]:
    """Every process of these pods. Each process of the machine is looked at once, however many pods they are.

    Those that started others come before them.
    """
    last_epochs = {pod.workspace_id: pod.last_epoch for pod in pods}
    session_ids = {pod.session_id for pod in pods if pod.session_id is not None}
    found: set[psutil.Process] = set()
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            children[process.ppid()].append(process)
            if os.getsid(process.pid) in session_ids or _is_marked(process.environ(), last_epochs):
                found.add(process)
    parents = list(found)
    while parents:
        descendants = set(children[parents.pop().pid]) - found
        found |= descendants
        parents += descendants
    return sorted(filter(_lives, found), key=_age)


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid


def _is_marked(environment: Mapping[str, str], last_epochs: Mapping[str, int | None]) -> bool:
    workspace_id, epoch = environment.get(WORKSPACE_MARKER, ""), environment.get(EPOCH_MARKER, "")
    if workspace_id not in last_epochs:
        return False
    last_epoch = last_epochs[workspace_id]
    # A tool may have set anything; what is no epoch that a database could hold proves nothing.
    return last_epoch is None or not _EPOCH.fullmatch(epoch) or int(epoch) <= last_epoch


def leftovers(started: Collection[int]) -> list[psutil.Process]:
    """The children of this process that it has not started itself; those of them that have ended are cleared away."""
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


async def end_all(*pods: Pod, grace_seconds: float, leftovers: Callable[[], list[psutil.Process]] = list) -> bool:
    """Ends every process of these pods: asked first, unless the grace is 0, then killed. False: some were still there after all.

    `leftovers` are of whichever pods, and end with them.
    """
    known: set[psutil.Process] = set()

    def look() -> list[psutil.Process]:
        # What was found once is not lost when that by which it was found has ended.
        known.update(find(*pods), leftovers())
        return sorted(filter(_lives, known), key=_age)

    if grace_seconds:
        processes = look()
        # An agent that is asked ends its tools itself. Were they asked too, it could take that for their natural end and commit it.
        own = {process.pid for process in processes}
        _signal([process for process in processes if _parent(process) not in own], signal.SIGTERM)
        await _wait_gone(processes, grace_seconds)
    # What was started meanwhile by what was ending is found by looking again. A process that is just being started shows no
    # environment for a moment, so one look that finds nothing is not enough.
    for _ in range(10):
        processes = look() or look()
        if not processes:
            return True
        _signal(processes, signal.SIGKILL)
        await _wait_gone(processes, 1.0)
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # psutil compares the start time, so a number that was given to another process since is left alone.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


async def _wait_gone(processes: Iterable[psutil.Process], timeout_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await asyncio.gather(*(gone(process.pid) for process in processes))


async def gone(pid: int) -> None:
    """Returns when the process has ended, whoever started it; at once when there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    # A child of ours stays a zombie until it is waited for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - WNOHANG does not wait
