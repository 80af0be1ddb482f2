"""A fleet controller for the bench. It believes that all pods are alive and never end.

In everything else, it is the program `fleet`, with the same environment variables. The bench starts
it by its path, so that it can run the code of another checkout.
"""

import asyncio
from typing import Any
from unittest.mock import patch

import uvloop

from evershell.app import fleet, pod_backends
from evershell.app.settings import Settings


class AlivePods:
    """Implements fleet.pods.Pods for workspaces whose agents are simulated."""

    def was_started(self, workspace: object) -> bool:
        return True

    def has_never_run(self, workspace_id: str) -> bool:
        return False

    async def start(self, workspace: object) -> None:
        raise OSError("the bench starts no pods")

    async def wait_exit(self, workspace: object) -> None:
        await asyncio.Event().wait()

    def is_alive(self, workspace: object) -> bool:
        return True

    def has_files(self, workspace_id: str) -> bool:
        return True

    async def sync(self) -> None:
        pass

    async def reap(self) -> None:
        pass

    def explain(self, workspace: object) -> str:
        return ""

    def log_tail(self, workspace_id: str) -> str:
        return ""

    async def end(self, workspace: object, grace_seconds: float) -> bool:
        return True

    async def remove(self, workspace_id: str) -> bool:
        return True


def _alive_pods(*_: Any, **__: Any) -> AlivePods:
    return AlivePods()


if __name__ == "__main__":
    with patch.object(pod_backends, "LocalPods", _alive_pods):
        uvloop.run(fleet.fleet(Settings.read()))
