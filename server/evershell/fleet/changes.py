"""The port through which the controller learns of changed workspaces."""

from typing import Protocol


class Changes(Protocol):
    """Announces changes of workspaces that the controller has to act on (`awaits_controller`)."""

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last call.

        The set is empty after the timeout. It may contain ports.UNSIGNALLED.
        """
