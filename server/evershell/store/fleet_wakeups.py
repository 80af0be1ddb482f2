"""Wakes the fleet controller when a workspace changes that awaits it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from evershell.store.background import running
from evershell.store.notifications import Channel, Notifications
from evershell.store.pool import Pool


class FleetWakeup:
    """A subscription. Implements fleet.changes.Changes."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ids: set[str] = set()
        self._missed = False

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last return.

        An empty set means that the timeout has passed or that changes may have been missed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()
        ids, self._ids = self._ids, set()
        missed, self._missed = self._missed, False
        return set() if missed else ids

    def wake(self, workspace_id: str | None) -> None:
        """Ends the wait; None means that changes may have been missed."""
        if workspace_id is None:
            self._missed = True
        else:
            self._ids.add(workspace_id)
        self._changed.set()


class PostgresFleetWakeups:
    """Sends and receives notifications while its context is entered."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self._subscriptions: set[FleetWakeup] = set()
        self._notifications = Notifications(
            pool, database_url, Channel.FLEET, self._wake, lambda: self._wake(None)
        )
        self._running = AsyncExitStack()
        self.announce = self._notifications.announce
        self.listening = self._notifications.listening

    async def __aenter__(self) -> Self:
        await self._running.enter_async_context(
            running(self._notifications.run(), "fleet-notifications")
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._running.aclose()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[FleetWakeup]:
        """Subscribes to the changes of all workspaces that the controller has to act on."""
        wakeup = FleetWakeup()
        self._subscriptions.add(wakeup)
        try:
            yield wakeup
        finally:
            self._subscriptions.discard(wakeup)

    def _wake(self, workspace_id: str | None) -> None:
        for wakeup in self._subscriptions:
            wakeup.wake(workspace_id)
