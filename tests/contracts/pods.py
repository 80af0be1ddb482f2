"""The implementations of Pods, and ways to kill, freeze and observe their agents."""

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from evershell.core.workspace import Workspace
from evershell.fleet.local import processes
from evershell.fleet.local.fork_server import ForkServer
from evershell.fleet.local.isolation import Isolation
from evershell.fleet.local.local_pods import LocalPods
from evershell.fleet.pods import Pods
from tests.support import pod_processes
from tests.support.fleet import FakePods
from tests.support.missing import NOT_APPLICABLE
from tests.support.pod_processes import subreaper
from tests.support.sandbox import working_sandbox
from tests.support.small_agent import spec_for
from tests.support.waiting import eventually_async

# The program of an agent. Starts a tool and prints two lines. On SIGTERM, ends the tool and itself.
AGENT = f"""#!{sys.executable} -S
import signal, subprocess, sys, time
tool = subprocess.Popen(["/bin/sleep", "600"])
def end(*_):
    tool.kill()
    tool.wait()
    print("asked to end", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("first line", flush=True)
print("last line", file=sys.stderr, flush=True)
time.sleep(600)
"""


class PodsCase(Protocol):
    """An implementation of Pods, and ways to kill, freeze and observe its agents."""

    # The last line that an agent writes after its start.
    last_line: str

    @property
    def pods(self) -> Pods:
        """The implementation under test."""

    async def other_controller(self) -> Pods:
        """Returns another controller's implementation, for the same pods."""

    async def start(self, workspace: Workspace) -> None:
        """Starts a pod and waits until a tool runs in it."""

    async def kill(self, workspace: Workspace) -> None:
        """Kills the agent of the pod, but not its tools."""

    def freeze(self, workspace: Workspace) -> None:
        """Freezes the agent of the pod, so that it ends only if it is killed."""

    def was_asked_to_end(self, workspace: Workspace) -> bool:
        """Whether the agent of the pod ended because it was asked to end."""

    def runs(self, workspace_id: str) -> bool:
        """Whether an agent or a tool runs in a pod of the workspace."""

    async def lose_track(self, workspace: Workspace) -> Pods:
        """Returns the implementation of a controller that cannot know what runs in this pod.

        Skips the test if every controller can always know what runs in a pod.
        """

    async def remove_files(self, workspace: Workspace) -> None:
        """Removes the files of the workspace."""

    async def remove(self, pods: Pods, workspace_id: str) -> None:
        """Removes the workspace, and returns when `pods` says that nothing is left."""

    async def leftovers(self, workspace_id: str) -> list[str]:
        """What the backend still has of the workspace, for example files or objects."""

    def failing_starts(self) -> AbstractAsyncContextManager[None]:
        """Makes starts fail until the context ends."""


class LocalCase:
    """The case of LocalPods, whose agents are processes of a small program."""

    last_line = "last line"

    def __init__(
        self,
        folder: Path,
        isolation: Isolation | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.folder = folder
        self._isolation = isolation
        self._fork_server = fork_server
        self.pods = self._port(foreign_children={each.pid for each in psutil.Process().children()})
        self._used: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        isolation: Isolation | None = None,
        fork_server: ForkServer | None = None,
    ) -> AsyncIterator["LocalCase"]:
        program = folder / "agent"
        program.write_text(AGENT)
        program.chmod(0o755)
        with pytest.MonkeyPatch.context() as patched, subreaper():
            patched.setattr(sys, "executable", str(program))
            case = cls(folder, isolation, fork_server)
            yield case
        for workspace_id in case._used:
            pod_processes.kill(workspace_id)

    @classmethod
    def open_in_sandbox(cls, folder: Path) -> AbstractAsyncContextManager["LocalCase"]:
        return cls.open(folder, working_sandbox(folder))

    @classmethod
    @asynccontextmanager
    async def open_forked(cls, folder: Path, server: ForkServer) -> AsyncIterator["LocalCase"]:
        """Opens the case in which the fork server forks the agents, which run AGENT."""
        with subreaper():
            async with cls.open(folder, working_sandbox(folder), server) as case:
                # An agent that is not forked runs this program, and fails.
                (folder / "agent").write_text("#!/bin/sh\nexit 1\n")
                yield case
            processes.reap_all()

    async def other_controller(self) -> LocalPods:
        return self._port()

    def _port(self, foreign_children: Collection[int] | None = None) -> LocalPods:
        return LocalPods(
            self.folder,
            spec_for,
            self._isolation,
            foreign_children=foreign_children,
            fork_server=self._fork_server,
        )

    async def start(self, workspace: Workspace) -> None:
        self._used.add(workspace.id)
        log = self.folder / "fleet" / workspace.id / "log"
        written = log.stat().st_size if log.exists() else 0
        await self.pods.start(workspace)
        await eventually_async(lambda: b"last line" in log.read_bytes()[written:])

    async def kill(self, workspace: Workspace) -> None:
        self._signal(workspace, signal.SIGKILL)
        await eventually_async(lambda: not self.pods.is_alive(workspace))

    def freeze(self, workspace: Workspace) -> None:
        self._signal(workspace, signal.SIGSTOP)

    def was_asked_to_end(self, workspace: Workspace) -> bool:
        return self.pods.log_tail(workspace.id) == "asked to end"

    def runs(self, workspace_id: str) -> bool:
        return bool(pod_processes.of_pod(workspace_id))

    async def lose_track(self, workspace: Workspace) -> Pods:
        """Kills the agent. Only the controller that started the agent can then find its tools.

        Skips the test in a sandbox, in which the tools end with the agent.
        """
        if self._isolation is not None:
            pytest.skip(f"{NOT_APPLICABLE}in a sandbox, the kernel ends the tools with the agent")
        await self.kill(workspace)
        return await self.other_controller()

    async def remove_files(self, workspace: Workspace) -> None:
        shutil.rmtree(self.folder / "pods" / workspace.id)

    async def remove(self, pods: Pods, workspace_id: str) -> None:
        assert await pods.remove(workspace_id) is True

    async def leftovers(self, workspace_id: str) -> list[str]:
        return [str(each) for each in self.folder.rglob(f"*{workspace_id}*")]

    @asynccontextmanager
    async def failing_starts(self) -> AsyncIterator[None]:
        program = self.folder / "agent"
        away = program.rename(self.folder / "away")
        try:
            with pytest.MonkeyPatch.context() as patched:
                if self._fork_server is not None:
                    patched.setattr(self._isolation, "bwrap", str(program))
                yield
        finally:
            away.rename(program)

    def _signal(self, workspace: Workspace, number: signal.Signals) -> None:
        os.kill(int((self.folder / "pods" / workspace.id / "pid").read_text()), number)


class FakeCase:
    """The case of FakePods: pods in memory, without processes."""

    last_line = "last line"

    def __init__(self) -> None:
        self.pods = FakePods()

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator["FakeCase"]:
        yield cls()

    async def other_controller(self) -> Pods:
        return self.pods

    async def start(self, workspace: Workspace) -> None:
        await self.pods.start(workspace)
        self.pods.last_log_line = self.last_line

    async def kill(self, workspace: Workspace) -> None:
        self.pods.kill(workspace)

    def freeze(self, workspace: Workspace) -> None:
        pass

    def was_asked_to_end(self, workspace: Workspace) -> bool:
        return self.pods.calls[-1] not in ("end 0", f"start {workspace.epoch}")

    def runs(self, workspace_id: str) -> bool:
        return any(alive == workspace_id for alive, _ in self.pods.alive)

    async def lose_track(self, workspace: Workspace) -> Pods:
        self.pods.ends_all = False
        return self.pods

    async def remove_files(self, workspace: Workspace) -> None:
        self.pods.files_exist = False

    async def remove(self, pods: Pods, workspace_id: str) -> None:
        assert await pods.remove(workspace_id) is True

    async def leftovers(self, workspace_id: str) -> list[str]:
        return [each[0] for each in self.pods.started if each[0] == workspace_id]

    @asynccontextmanager
    async def failing_starts(self) -> AsyncIterator[None]:
        self.pods.start_error = OSError(2, "No such file or directory", "missing")
        yield
        self.pods.start_error = None
