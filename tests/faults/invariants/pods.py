"""The pods of a run, as the controller sees them: each is an agent in this process."""

import asyncio

from evershell.core.workspace import Workspace
from tests.faults.invariants.agent import Agent, Surrounded


class Pods:
    """Implements fleet.pods.Pods."""

    def __init__(self, agents: list[Agent], shared: Surrounded) -> None:
        # Whether the controller is able to end pods and to observe their end.
        self.are_in_reach = True
        self._agents = agents
        # Each pod that was started, by workspace, epoch and run.
        self._started: set[tuple[str, int, str | None]] = set()
        self._shared = shared

    async def sync(self) -> None:
        pass

    def was_started(self, workspace: Workspace) -> bool:
        return (workspace.id, workspace.epoch, workspace.run_id) in self._started

    def has_never_run(self, workspace_id: str) -> bool:
        return False

    async def start(self, workspace: Workspace) -> None:
        self._started.add((workspace.id, workspace.epoch, workspace.run_id))
        self._agents.append(Agent(workspace.id, workspace.epoch, self._shared))

    async def wait_exit(self, workspace: Workspace) -> None:
        for agent in self._of(workspace.id):
            if agent.epoch == workspace.epoch:
                await agent.gone.wait()

    def is_alive(self, workspace: Workspace) -> bool:
        return any(
            agent.epoch == workspace.epoch and not agent.is_gone for agent in self._of(workspace.id)
        )

    def has_files(self, workspace_id: str) -> bool:
        return bool(self._of(workspace_id))

    def log_tail(self, workspace_id: str) -> str:
        return ""

    def explain(self, workspace: Workspace) -> str:
        return ""

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        if not self.are_in_reach:
            return False
        ended = [agent for agent in self._of(workspace.id) if agent.epoch <= workspace.epoch]
        for agent in ended:
            if agent.is_gone:
                continue
            if grace_seconds and not agent.is_frozen:
                await agent.end()
            else:
                await agent.crash()
        epochs = {agent.epoch for agent in ended}
        self._shared.tools -= {tool for tool in self._shared.tools if tool[0] in epochs}
        return True

    async def remove(self, workspace_id: str) -> bool:
        if self.are_in_reach:
            for agent in self._of(workspace_id):
                if not agent.is_gone:
                    await agent.crash()
            self._started = {each for each in self._started if each[0] != workspace_id}
        return self.are_in_reach

    def _of(self, workspace_id: str) -> list[Agent]:
        return [agent for agent in self._agents if agent.workspace_id == workspace_id]


class Changes:
    """Implements fleet.pods.Changes.

    A rule of the state machine can make the controller scan at once. Otherwise, the controller
    scans after its usual interval.
    """

    def __init__(self) -> None:
        self._published: asyncio.Queue[set[str]] = asyncio.Queue()

    def publish(self, workspace_id: str) -> None:
        self._published.put_nowait({workspace_id})

    async def wait(self, timeout_seconds: float) -> set[str]:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._published.get()
        except TimeoutError:
            return set()
