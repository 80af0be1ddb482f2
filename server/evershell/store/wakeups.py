"""Wakes calls that wait for a change of a workspace, even if another process changes it.

Calls on this process are woken directly. Other processes are notified only if they have marked the
workspace (watched_workspaces.py).
"""

import asyncio
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Self

from evershell.core.ports import Clock
from evershell.store.background import running
from evershell.store.notifications import Channel, Notifications
from evershell.store.pool import Pool
from evershell.store.watched_workspaces import WatchedWorkspaces


class ChangeWakeup:
    """Implements core.ports.Wakeup.

    There may be thousands that wait, so a wait is a future and a timer. An Event needs three times
    as much memory.
    """

    __slots__ = ("_draining", "_has_changed", "_has_ended", "_poll_seconds", "_waiting")

    def __init__(self, poll_seconds: float, draining: asyncio.Event) -> None:
        self._poll_seconds = poll_seconds
        self._draining = draining
        self._has_ended = False
        self._has_changed = False
        # Done when the wait in progress is over; None if there is none.
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns after `poll_seconds` at the latest."""
        if self._may_wait() and not self._has_changed:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(min(timeout_seconds, self._poll_seconds), self._end_wait)
            try:
                await self._waiting
            finally:
                self._waiting = None
                timer.cancel()
        self._has_changed = False
        return self._may_wait()

    def begin(self) -> None:
        """Forgets earlier changes. The subscriber reads them when the subscription begins."""
        self._has_changed = False

    def wake(self) -> None:
        """Ends the wait."""
        self._has_changed = True
        self._end_wait()

    def end(self) -> None:
        """Ends this wait and every later one."""
        self._has_ended = True
        self.wake()

    def _end_wait(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _may_wait(self) -> bool:
        return not (self._has_ended or self._draining.is_set())


class PostgresWakeups:
    """Implements core.ports.Wakeups. Sends and receives while its context is entered."""

    def __init__(
        self,
        pool: Pool,
        database_url: str,
        clock: Clock,
        *,
        poll_seconds: float = 5.0,
    ) -> None:
        """Sends through `pool`, and receives on its own connection to `database_url`."""
        self._poll_seconds = poll_seconds
        self._subscriptions: defaultdict[str, set[ChangeWakeup]] = defaultdict(set)
        self._draining = asyncio.Event()
        self._watched = WatchedWorkspaces(pool, self._wake, clock)
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

    def subscribe(self, workspace_id: str) -> AbstractAsyncContextManager[ChangeWakeup]:
        """Subscribes. Takes one statement, unless the workspace is marked, and 0.25 s at most."""
        return _Subscription(self, workspace_id)

    async def join(self, workspace_id: str) -> ChangeWakeup:
        """Begins a subscription. Without `leave`, it never ends, unless this raises."""
        wakeup = ChangeWakeup(self._poll_seconds, self._draining)
        self._subscriptions[workspace_id].add(wakeup)
        try:
            await self._watched.watch(workspace_id)
        except BaseException:
            self.leave(workspace_id, wakeup)
            raise
        wakeup.begin()
        return wakeup

    def is_awaited(self, workspace_id: str) -> bool:
        """Whether the workspace has subscribers on this process."""
        return workspace_id in self._subscriptions

    def leave(self, workspace_id: str, wakeup: ChangeWakeup) -> None:
        """Ends a subscription."""
        subscribers = self._subscriptions[workspace_id]
        subscribers.discard(wakeup)
        if not subscribers:
            del self._subscriptions[workspace_id]
            self._watched.leave(workspace_id)

    def _wake(self, workspace_id: str) -> None:
        for wakeup in self._subscriptions.get(workspace_id, ()):
            wakeup.wake()


class _Subscription:
    """The context of `subscribe`. Written without a generator, which needs 0.7 kB more memory."""

    __slots__ = ("_wakeup", "_wakeups", "_workspace_id")

    def __init__(self, wakeups: PostgresWakeups, workspace_id: str) -> None:
        self._wakeups = wakeups
        self._workspace_id = workspace_id

    async def __aenter__(self) -> ChangeWakeup:
        self._wakeup = await self._wakeups.join(self._workspace_id)
        return self._wakeup

    async def __aexit__(self, *_: object) -> None:
        self._wakeups.leave(self._workspace_id, self._wakeup)
