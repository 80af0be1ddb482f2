"""Wakes calls that wait for a change of a workspace, also if another process changes it.

Calls on this process are woken directly. Other processes are notified only if they have marked the
workspace (watched_workspaces.py).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from evershell.server.store.background import running
from evershell.server.store.notifications import Channel, Notifications
from evershell.server.store.pool import Pool
from evershell.server.store.watched_workspaces import WatchedWorkspaces


class ChangeWakeup:
    """Implements core.ports.Wakeup."""

    def __init__(self, poll_seconds: float, draining: asyncio.Event) -> None:
        self._poll_seconds = poll_seconds
        self._draining = draining
        self._has_ended = False
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns after `poll_seconds` at the latest."""
        if self._may_wait():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(timeout_seconds, self._poll_seconds)):
                    await self._changed.wait()
            self._changed.clear()
        return self._may_wait()

    def begin(self) -> None:
        """Forgets earlier changes. The subscriber reads them when the subscription begins."""
        self._changed.clear()

    def wake(self) -> None:
        """Ends the wait."""
        self._changed.set()

    def end(self) -> None:
        """Ends this wait and every later one."""
        self._has_ended = True
        self.wake()

    def _may_wait(self) -> bool:
        return not (self._has_ended or self._draining.is_set())


class PostgresWakeups:
    """Implements core.ports.Wakeups. Sends and receives while its context is entered."""

    def __init__(self, pool: Pool, database_url: str, *, poll_seconds: float = 5.0) -> None:
        """Sends through `pool`, and receives on its own connection to `database_url`."""
        self._poll_seconds = poll_seconds
        self._subscriptions: defaultdict[str, set[ChangeWakeup]] = defaultdict(set)
        self._draining = asyncio.Event()
        self._watched = WatchedWorkspaces(pool, self._wake)
        self._notifications = Notifications(
            pool, database_url, Channel.CHANGES, self._wake, self._watched.mark_again
        )
        self._running = AsyncExitStack()
        self.announce = self._notifications.announce
        self.listening = self._notifications.listening
        self.disconnected = self._notifications.disconnected

    async def __aenter__(self) -> Self:
        for work, name in (
            (self._notifications.run(), "notifications"),
            (self._watched.run(), "watched-workspaces"),
        ):
            await self._running.enter_async_context(running(work, name))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._running.aclose()

    def drain(self) -> None:
        """Ends all current and later waits, because the process is about to end."""
        self._draining.set()
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.wake()

    def end_waits(self) -> None:
        """Ends all current waits, so that their calls answer with the current state.

        Does not affect later subscriptions.
        """
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.end()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str) -> AsyncIterator[ChangeWakeup]:
        """Subscribes. Takes one statement, unless the workspace is marked, and 0.25 s at most."""
        wakeup = ChangeWakeup(self._poll_seconds, self._draining)
        self._subscriptions[workspace_id].add(wakeup)
        try:
            await self._watched.watch(workspace_id)
            wakeup.begin()
            yield wakeup
        finally:
            subscribers = self._subscriptions[workspace_id]
            subscribers.discard(wakeup)
            if not subscribers:
                del self._subscriptions[workspace_id]
                self._watched.leave(workspace_id)

    def _wake(self, workspace_id: str) -> None:
        for wakeup in self._subscriptions.get(workspace_id, ()):
            wakeup.wake()
