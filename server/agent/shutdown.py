"""How the agent's process ends."""

import asyncio
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells whoever started it."""

    # Asked for, with SIGTERM or SIGINT.
    STOPPED = 0
    # A bug: something raised that nothing expects to raise.
    CRASHED = 1
    # The spec cannot be used. Starting the agent again would not help.
    BAD_SPEC = 2
    # Its epoch is over.
    FENCED = 3
    # The control plane does not take its token.
    UNAUTHORIZED = 4
    # It could not renew its lease in time.
    LEASE_OVER = 5
    # The control plane does not take what it commits.
    REJECTED = 6


class AgentOverError(Exception):
    """The agent is to end: what was asked for will not be done."""


class Shutdown:
    """The agent's decision to end. The first reason stays."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self.code = ExitCode.STOPPED
        self.reason = ""

    def begin(self, code: ExitCode, reason: str) -> None:
        """Has the agent end its tools and itself."""
        if not self._begun.is_set():
            self.code, self.reason = code, reason
            self._begun.set()

    @property
    def is_begun(self) -> bool:
        """Whether the agent is ending."""
        return self._begun.is_set()

    async def wait(self) -> None:
        """Returns once the agent is to end."""
        await self._begun.wait()
