"""What the controller sees of the machine: pods are agents of this process."""

import asyncio

from server.core.workspace import Workspace
from tests.invariants.agent import Agent, Surrounded


class Pods:
    """Implements server.fleet.controller.Pods."""

    def __init__(self, agents: list[Agent], shared: Surrounded) -> None:
        # Whether what runs can be ended, and be known to have ended.
        self.are_in_reach = True
        self._agents = agents
        self._shared = shared

    def was_started(self, workspace: Workspace) -> bool:
        return any(agent.epoch == workspace.epoch for agent in self._agents)

    async def start(self, workspace: Workspace) -> None:
        self._agents.append(Agent(workspace.id, workspace.epoch, self._shared))

    async def wait_exit(self, workspace: Workspace) -> None:
        """Nobody is told of an end: the next look finds it."""
        await asyncio.Event().wait()

    def is_alive(self, workspace: Workspace) -> bool:
        return any(agent.epoch == workspace.epoch and not agent.is_gone for agent in self._agents)

    def has_files(self, workspace_id: str) -> bool:
        return True

    def log_tail(self, workspace_id: str) -> str:
        return ""

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        if not self.are_in_reach:
            return False
        for agent in [
            agent for agent in self._agents if agent.epoch <= workspace.epoch and not agent.is_gone
        ]:
            if grace_seconds and not agent.is_frozen:
                await agent.end()
            else:
                await agent.crash()
        self._shared.tools -= {tool for tool in self._shared.tools if tool[0] <= workspace.epoch}
        return True


class Changes:
    """Implements server.fleet.controller.Changes: a rule has the controller look now; by itself it
    looks when its time has come.
    """

    def __init__(self) -> None:
        self._announced: asyncio.Queue[set[str]] = asyncio.Queue()

    def announce(self, workspace_id: str) -> None:
        self._announced.put_nowait({workspace_id})

    async def wait(self, timeout_seconds: float) -> set[str]:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._announced.get()
        except TimeoutError:
            return set()
