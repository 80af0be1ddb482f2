"""The agent's heartbeat."""

import asyncio
import random

from evershell.agents.lease import Lease
from evershell.agents.runtime_client import RuntimeClient
from evershell.agents.session import Session
from evershell.core.task import Phase

# Each interval is multiplied by a random factor between these.
JITTER = (0.9, 1.1)


class Heartbeat:
    """Renews the lease several times per lease, and at once when the task or its phase changes.

    The intervals vary, so that agents that started together do not send their heartbeats together.

    One heartbeat runs at a time. The next one reports everything that changed meanwhile.
    """

    def __init__(self, runtime: RuntimeClient, lease: Lease, session: Session) -> None:
        self._runtime = runtime
        self._lease = lease
        self._session = session
        self._requested = asyncio.Event()

    def beat_now(self) -> None:
        """Sends a heartbeat as soon as possible, because the task or its phase has changed."""
        self._requested.set()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises AgentEndingError."""
        while True:
            try:
                interval_seconds = self._lease.heartbeat_interval_seconds
                jitter = random.uniform(*JITTER)  # noqa: S311 - not a secret
                async with asyncio.timeout(interval_seconds * jitter):
                    await self._requested.wait()
            except TimeoutError:
                pass
            self._requested.clear()
            await self._runtime.heartbeat(self._current)

    def _current(self) -> tuple[str, Phase]:
        return self._session.task_id, self._session.phase
