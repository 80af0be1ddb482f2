"""Ends the processes of a pod.

An agent without a sandbox is a subreaper (pod/process.py): while it lives, all processes that it
and its tools have started are its descendants. When the agent dies, they become children of the
controller that started it, which is a subreaper too. If that controller has died, they become
children of `up`.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from evershell.pod.process import EPOCH_VARIABLE, WORKSPACE_VARIABLE, wait_exit

# How long a killed process may take to end. After that, it is assumed to hang in the kernel.
_KILLED_SECONDS = 10.0
# How many scans in a row must find no descendant. One scan is not enough, because a process may
# start another during the scan.
_LAST_SCANS = 2
# Added to the niceness of agents and tools. Under load, each of them gets a ninth of the processor
# time that a program of the service gets. With less, agents and tools would starve next to a busy
# program of another user.
_NICER = 10
_NICEST = 19
# The indexes of fields of proc_pid_stat(5), counted from the field after the name.
_STATE, _STARTED_AT = 0, 19


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
        return cls(pid, int(_stat(pid)[_STARTED_AT]))

    def is_running(self) -> bool:
        """Whether the process has not ended. A zombie has ended."""
        try:
            stat = _stat(self.pid)
        except OSError:
            return False
        return int(stat[_STARTED_AT]) == self.started_at and stat[_STATE] not in "ZX"

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        with suppress(psutil.Error):
            # psutil compares the start time, so a later process with the same id gets no signal.
            process = psutil.Process(self.pid)
            if self.is_running():
                process.send_signal(number)


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) after the name. Raises OSError."""
    # The name of the process, in parentheses, may contain spaces and parentheses.
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()


def lower_priority(pid: int, child_pid: int) -> None:
    """Makes the agent, and the processes that it starts, give way to the programs of the service.

    Many busy agents on one machine would otherwise delay every call, including their own
    heartbeats. The kernel may first divide processor time among sessions (sched(7), "The autogroup
    feature"). All forked agents are in the session of the fork server, so together they get the
    share of one program. An agent that was not forked but executed has its own session. The leader
    of this session is the agent or `child_pid`, the child that was started for the agent.
    """
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICER, _NICEST)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    with suppress(OSError):
        if os.getsid(pid) in (pid, child_pid):
            Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def is_of(pid: int, workspace_id: str, epoch: int) -> bool:
    """Whether the environment with which the process was started names this pod."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    wanted = {WORKSPACE_VARIABLE: workspace_id, EPOCH_VARIABLE: epoch}
    return {f"{name}={value}".encode() for name, value in wanted.items()} <= set(environment)


async def end_agent(agent: ProcessId, grace_seconds: float, *, is_init: bool) -> bool:
    """Ends the agent and its tools. Sends SIGTERM first, unless `grace_seconds` is 0.

    `is_init` says that the agent is the init process of a PID namespace: when it ends, the kernel
    ends all other processes of the namespace. Returns whether everything that the agent has started
    is known to have ended.
    """
    if grace_seconds:
        # Only the agent gets SIGTERM, because it ends its tools itself. If a tool got it too, the
        # agent could treat the tool's end as a normal exit and commit it.
        agent.send_signal(signal.SIGTERM)
        await _wait_exit(agent, grace_seconds)
    tools_ended = is_init
    if not is_init and agent.is_running():
        # While the agent is stopped, it starts nothing, and orphans of the killed processes become
        # its children.
        agent.send_signal(signal.SIGSTOP)
        tools_ended = await kill_descendants(agent.pid) and agent.is_running()
    agent.send_signal(signal.SIGKILL)
    await _wait_exit(agent, _KILLED_SECONDS)
    return tools_ended and not agent.is_running()


async def kill_descendants(pid: int, spare: Callable[[], Collection[int]] = tuple) -> bool:
    """Kills the descendants of the process, except its children in `spare` and their descendants.

    Returns whether all killed processes have ended.
    """
    until = time.monotonic() + _KILLED_SECONDS
    scans = 0
    while scans < _LAST_SCANS:
        if time.monotonic() > until:
            return False
        alive = [each for each in _descendants(pid, spare()) if _is_alive(each)]
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        scans = 0 if alive else scans + 1
        await asyncio.sleep(0.005 if alive else 0)
    return True


def _descendants(pid: int, spare: Collection[int]) -> list[psutil.Process]:
    descendants: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        descendants = [each for each in psutil.Process(pid).children() if each.pid not in spare]
    for child in list(descendants):
        with suppress(psutil.NoSuchProcess):
            descendants += child.children(recursive=True)
    return descendants


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


async def _wait_exit(process: ProcessId, timeout_seconds: float) -> None:
    if not process.is_running():
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await wait_exit_and_reap(process.pid)


async def wait_exit_and_reap(pid: int) -> None:
    """Waits until the process has ended. Returns at once if there is no such process.

    Reaps the process if it is a child of this process.
    """
    await wait_exit(pid)
    reap(pid)


def reap_all() -> None:
    """Reaps all children that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def reap(pid: int) -> None:
    """Reaps the process if it is a child that has ended."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
