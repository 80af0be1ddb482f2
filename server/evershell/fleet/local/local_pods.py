"""Pods on this machine: an agent's process with its own folder.

Pods outlive the controller that started them: pod_records.py stores what another controller needs
to take over. A record is only a hint, because tools without a sandbox (isolation.py) run as the
controller's user and can forge it. So a record is compared with the kernel's data: a process counts
as the agent only if its start time, and the environment with which it was started, match the
record. A controller also remembers the agents that it has started itself.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import structlog

from evershell.core.runtime import AgentIdentity
from evershell.core.workspace import Workspace
from evershell.fleet.local import processes
from evershell.fleet.local.fork_server import ForkServer
from evershell.fleet.local.isolation import Isolation, NoIsolation, Started, uid_of
from evershell.fleet.local.pod_records import AgentRecord, PodRecords, UnreadableError
from evershell.fleet.local.processes import ProcessId
from evershell.pod.fork_server import ForkRequest
from evershell.pod.process import EPOCH_VARIABLE, WORKSPACE_VARIABLE
from evershell.pod.spec import PodSpec

log = structlog.get_logger()

# The interval between checks whether the files of a pod are in place.
_FILES_CHECK_SECONDS = 3.0

# How often children that have ended are reaped.
_REAP_SECONDS = 2.0

# How long bwrap may take to run the agent's program. It normally takes a few milliseconds.
_PROGRAM_SECONDS = 5.0


class LocalPods:
    """Implements Pods with processes of this machine."""

    def __init__(
        self,
        state_dir: Path,
        spec_for: Callable[[AgentIdentity], PodSpec],
        isolation: Isolation | None = None,
        agent_command: Sequence[str] = (),
        foreign_children: Collection[int] | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        """Keeps all files of the pods below `state_dir`. Without `isolation`, uses NoIsolation.

        `agent_command` is the program of the agents, with its arguments; by default the agent of
        this package.

        `foreign_children` are the children of this process that are not agents. If it is given,
        this process must be a subreaper, and every other child must be an agent or a process left
        by a dead agent. If it is None, processes left by dead agents are not ended.

        With a sandbox, `fork_server` forks the agents.
        """
        self._state_dir = state_dir
        self._records = PodRecords(state_dir)
        self._spec_for = spec_for
        self._foreign_children = foreign_children
        self._isolation = isolation or NoIsolation()
        self._fork_server = fork_server
        # -P: imports nothing from the working directory, to which tools can write.
        own = (sys.executable, "-P", "-m", "evershell.agents")
        self._agent_command = list(agent_command or own)
        # The agents that this controller has started, by workspace id and epoch.
        self._started: dict[tuple[str, int], Started] = {}

    async def sync(self) -> None:
        """Implements Pods: only starts the fork server.

        The other methods read the records, which are always current. The fork server takes a second
        to import the agent. A controller that stands by has no fork server.
        """
        if self._fork_server is not None:
            # If this fails, the first start of an agent tries again.
            with contextlib.suppress(OSError):
                self._fork_server.start()

    async def reap(self) -> None:
        """Reaps children that have ended, until it is cancelled.

        Nothing else reaps agents that end while another controller leads, agents that were
        replaced, or the processes that they leave behind.
        """
        while True:
            processes.reap_all()
            await asyncio.sleep(_REAP_SECONDS)

    def was_started(self, workspace: Workspace) -> bool:
        record = self._record(workspace.id)
        is_recorded = record is not None and (record.epoch, record.run) == (
            workspace.epoch,
            workspace.run_id,
        )
        return is_recorded or (workspace.id, workspace.epoch) in self._started

    def has_never_run(self, workspace_id: str) -> bool:
        if not self._isolation.agent_is_init:
            # A tool may have removed the record.
            return False
        try:
            is_recorded = self._records.read(workspace_id) is not None
        except UnreadableError:
            return False
        return not is_recorded and all(started != workspace_id for started, _ in self._started)

    async def start(self, workspace: Workspace) -> None:
        assert workspace.run_id is not None
        # Written before the start, so that the next controller does not start a second pod if this
        # controller dies right after the start.
        self._records.write(workspace.id, AgentRecord(workspace.epoch, workspace.run_id))
        read_end, write_end = os.pipe()
        # An agent that has already ended does not read its spec.
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as spec_input:
            try:
                started = await self._start(workspace, read_end)
            finally:
                os.close(read_end)
            record = AgentRecord(
                workspace.epoch,
                workspace.run_id,
                started.agent,
                is_init=self._isolation.agent_is_init,
            )
            self._records.write(workspace.id, record)
            spec = self._spec_for(AgentIdentity(workspace.id, workspace.epoch))
            spec_input.write(json.dumps(asdict(spec)).encode())

    async def _start(self, workspace: Workspace, stdin: int) -> Started:
        """Starts the agent. Returns when its process runs the agent's program. Raises OSError."""
        key = workspace.id, workspace.epoch
        environment = self._environment(workspace)
        with (
            self._records.created_files(workspace.id) as files,
            self._records.open_log(workspace.id) as log,
        ):
            start = partial(
                self._isolation.start,
                workspace,
                self._agent_command,
                environment,
                files=files,
                stdin=stdin,
                log=log,
            )
            # Stored before any other code can run, because `end` kills all children of this process
            # that are not stored.
            if self._fork_server is None:
                self._started[key] = started = start()
            else:
                own, other = socket.socketpair()
                with own:
                    with other:
                        self._started[key] = started = start(gate=other.fileno())
                    request = ForkRequest(
                        pid=started.agent.pid,
                        uid=uid_of(workspace.id),
                        command=self._agent_command,
                        environment=environment,
                    )
                    agent = await self._fork_server.fork(request, own, stdin, log.fileno())
                    if agent is not None:
                        self._started[key] = started = replace(started, agent=agent)
        if self._isolation.agent_is_init:
            await self._wait_program(workspace, started.agent)
        processes.lower_priority(started.agent.pid, started.child_pid)
        return started

    async def _wait_program(self, workspace: Workspace, agent: ProcessId) -> None:
        """Waits until the process runs the agent's program in the workspace's folder.

        Raises OSError.
        """
        async with asyncio.timeout(_PROGRAM_SECONDS):
            while not processes.is_of(agent.pid, workspace.id, workspace.epoch):
                if not agent.is_running():
                    raise OSError(errno.EIO, "its sandbox could not be built; see its log")
                await asyncio.sleep(0.002)

    def _environment(self, workspace: Workspace) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            WORKSPACE_VARIABLE: workspace.id,
            EPOCH_VARIABLE: str(workspace.epoch),
        }

    async def wait_exit(self, workspace: Workspace) -> None:
        agent = self._agent(workspace)
        if agent is None:
            return
        exiting = asyncio.ensure_future(processes.wait_exit_and_reap(agent.pid))
        try:
            while not exiting.done() and self.has_files(workspace.id):
                await asyncio.wait((exiting,), timeout=_FILES_CHECK_SECONDS)
        finally:
            exiting.cancel()
            await asyncio.gather(exiting, return_exceptions=True)

    def is_alive(self, workspace: Workspace) -> bool:
        return self._agent(workspace) is not None and self.has_files(workspace.id)

    def has_files(self, workspace_id: str) -> bool:
        try:
            with self._records.files(workspace_id) as files:
                folder = os.fstat(files)
        except OSError:
            return False
        agent = self._last_agent(workspace_id)
        if agent is None or not agent.is_running():
            return True
        try:
            return os.path.samestat(folder, Path(f"/proc/{agent.pid}/cwd").stat())
        except OSError:
            # The agent has just ended.
            return True

    def log_tail(self, workspace_id: str) -> str:
        return self._records.last_log_line(workspace_id)

    def explain(self, workspace: Workspace) -> str:
        return "" if self.has_files(workspace.id) else "its folder was deleted or replaced"

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        own = {
            key: started.agent
            for key, started in self._started.items()
            if key[0] == workspace.id and key[1] <= workspace.epoch
        }
        # The agents to end, each with whether it is an init process.
        agents = dict.fromkeys(own.values(), self._isolation.agent_is_init)
        record = self._record(workspace.id)
        if record is not None and record.epoch <= workspace.epoch:
            recorded = _confirmed(workspace.id, record)
            if recorded is not None:
                agents.setdefault(recorded, record.is_init)
        ends = [
            processes.end_agent(agent, grace_seconds, is_init=is_init)
            for agent, is_init in agents.items()
        ]
        ended = zip(agents, await asyncio.gather(*ends), strict=True)
        # The agents that have ended together with everything that they had started.
        whole = {agent for agent, is_whole in ended if is_whole}
        if own and self._foreign_children is not None and not self._isolation.agent_is_init:
            if not await self._end_orphans(self._foreign_children):
                return False
            whole.update(own.values())
        if any(agent.is_running() for agent in agents):
            return False
        agent = own.get((workspace.id, workspace.epoch))
        is_known = agent in whole if agent is not None else self._is_over(workspace, whole)
        self._reap(own)
        for key in own:
            self._started.pop(key, None)
        if is_known or (record is not None and record.process in whole):
            self._records.note_end(workspace.id, workspace.epoch)
        return is_known

    async def remove(self, workspace_id: str) -> bool:
        try:
            # Removes one part at a time, because this program can end only between two parts.
            while not await asyncio.to_thread(self._records.remove_some, workspace_id):
                pass
        except OSError as error:
            log.warning("files_not_removed", workspace_id=workspace_id, problem=str(error))
            return False
        return True

    async def _end_orphans(self, foreign: Collection[int]) -> bool:
        """Ends the processes that dead agents have left. Returns whether all of them have ended."""
        return await processes.kill_descendants(
            os.getpid(),
            lambda: {*foreign, *(pid for each in self._started.values() for pid in each.pids)},
        )

    def _reap(self, keys: Iterable[tuple[str, int]]) -> None:
        """Reaps the processes of these pods that have ended."""
        # Another call of `end` may have removed some of the keys.
        known = (self._started[key] for key in keys if key in self._started)
        for pid in {pid for started in known for pid in started.pids}:
            processes.reap(pid)

    def _is_over(self, workspace: Workspace, ended: Collection[ProcessId]) -> bool:
        """Whether everything in a pod that another controller started is known to have ended.

        `ended` are agents that have ended together with everything that they had started. When an
        agent dies, the processes that it leaves become children of the controller that started it.
        Another controller cannot find them.
        """
        try:
            record = self._records.read(workspace.id)
        except UnreadableError:
            return False
        if record is None or record.process is None:
            return True
        if record.epoch != workspace.epoch:
            return False
        # An init process ends after all other processes of its PID namespace (pid_namespaces(7)).
        return record.process in ended or (record.is_init and not record.process.is_running())

    def _agent(self, workspace: Workspace) -> ProcessId | None:
        """The agent of this epoch; None if it does not run."""
        own = self._started.get((workspace.id, workspace.epoch))
        if own is not None:
            return own.agent if own.agent.is_running() else None
        record = self._record(workspace.id)
        if record is None or record.epoch != workspace.epoch:
            return None
        return _confirmed(workspace.id, record)

    def _last_agent(self, workspace_id: str) -> ProcessId | None:
        own = [epoch for started, epoch in self._started if started == workspace_id]
        if own:
            return self._started[workspace_id, max(own)].agent
        record = self._record(workspace_id)
        return record.process if record is not None else None

    def _record(self, workspace_id: str) -> AgentRecord | None:
        try:
            return self._records.read(workspace_id)
        except UnreadableError:
            return None


def _confirmed(workspace_id: str, record: AgentRecord) -> ProcessId | None:
    """The agent of the record; None if it does not run."""
    agent = record.process
    if (
        agent is not None
        and agent.is_running()
        and processes.is_of(agent.pid, workspace_id, record.epoch)
    ):
        return agent
    return None


async def end_every_pod(state_dir: Path, own_pids: Callable[[], Collection[int]]) -> None:
    """Kills everything that runs in the pods of the stack, after its controllers have ended.

    This process is a subreaper, so the agents of its controllers, and the processes left by dead
    agents, are now its children. `own_pids` returns the ids of all other children. If a controller
    was started by another process, its agents are found by their records. Agents get no SIGTERM
    first, because they have nothing left to commit.
    """
    records = PodRecords(state_dir)
    if not await processes.kill_descendants(os.getpid(), own_pids):
        return
    for workspace_id in records.workspace_ids():
        try:
            record = records.read(workspace_id)
        except UnreadableError:
            record = None
        if (
            record is None
            or (agent := _confirmed(workspace_id, record)) is None
            or await processes.end_agent(agent, 0, is_init=record.is_init)
        ):
            records.note_end(workspace_id)
