"""The exits of agents, which the controller acts on without waiting for the next scan."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from evershell.core.errors import UnavailableError
from evershell.core.workspace import Workspace
from evershell.fleet.pods import Pods


class Exits:
    """Waits for agents to exit."""

    def __init__(self, pods: Pods, reconcile: Callable[[set[str]], Awaitable[None]]) -> None:
        """`reconcile` is called with the id of the workspace whose agent has exited."""
        self._pods = pods
        self._reconcile = reconcile
        # The tasks that wait, by workspace id and epoch.
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def watch(self, workspace: Workspace) -> None:
        """Waits for the agent of this epoch, unless it is already watched."""
        key = f"{workspace.id}/{workspace.epoch}"
        if key not in self._waiting:
            self._waiting[key] = asyncio.create_task(self._await_exit(key, workspace))

    def stop(self) -> None:
        """Watches no agent any more."""
        for task in self._waiting.values():
            task.cancel()

    async def _await_exit(self, key: str, workspace: Workspace) -> None:
        await self._pods.wait_exit(workspace)
        del self._waiting[key]
        with suppress(UnavailableError):
            await self._reconcile({workspace.id})
