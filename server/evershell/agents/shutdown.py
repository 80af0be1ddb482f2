"""The shutdown of the agent's process."""

import asyncio
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of the process: the reason why it has ended."""

    # SIGTERM or SIGINT.
    STOPPED = 0
    # An unexpected exception, which is a bug, or the end of a task that was not committed.
    CRASHED = 1
    # The spec is not valid. Starting the agent again would not help.
    BAD_SPEC = 2
    # The agent's epoch is over.
    FENCED = 3
    # The control plane refused the agent's token.
    UNAUTHORIZED = 4
    # The agent could not renew its lease in time.
    LEASE_OVER = 5
    # The control plane refused a registration, a heartbeat or a commit.
    REJECTED = 6


class AgentEndingError(Exception):
    """The agent is shutting down, so the call was given up."""


class Shutdown:
    """The agent's decision to end. Only the first call of `begin` sets the code and the reason."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self.code = ExitCode.STOPPED
        self.reason = ""

    def begin(self, code: ExitCode, reason: str) -> None:
        """Makes the agent end its tools and itself."""
        if not self._begun.is_set():
            self.code, self.reason = code, reason
            self._begun.set()

    @property
    def is_begun(self) -> bool:
        """Whether the shutdown has begun."""
        return self._begun.is_set()

    async def wait(self) -> None:
        """Waits until the shutdown has begun."""
        await self._begun.wait()
