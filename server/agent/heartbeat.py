"""The agent's heartbeat."""

import asyncio

from server.agent.committer import Committer
from server.agent.lease import Lease
from server.agent.session import Session
from server.core.task import Phase


class Heartbeat:
    """Renews the lease several times in its length, and at once when there is something to tell.

    There is one heartbeat at a time; what changes while it is under way is told by the next one, so
    quick changes become one, and nobody ever waits for it.
    """

    def __init__(self, committer: Committer, lease: Lease, session: Session) -> None:
        self._committer = committer
        self._lease = lease
        self._session = session
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """The task or its phase has changed."""
        self._hurried.set()

    async def run(self) -> None:
        """Goes on for ever. Raises AgentOverError."""
        while True:
            try:
                async with asyncio.timeout(self._lease.heartbeat_interval_seconds):
                    await self._hurried.wait()
            except TimeoutError:
                pass
            self._hurried.clear()
            await self._committer.heartbeat(self._current)

    def _current(self) -> tuple[str, Phase]:
        return self._session.task_id, self._session.phase
