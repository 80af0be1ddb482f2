"""Notifies every process that a workspace has changed, with PostgreSQL's LISTEN and NOTIFY.

A background task sends the notification after the commit, not within the transaction: PostgreSQL
takes a lock on the whole cluster while a transaction that has notified commits, so all such commits
would wait for each other. One notification carries the ids of all workspaces that changed while the
previous one was in flight.

A notification is lost if a process dies between commit and notification, or if a listener is
reconnecting. Subscribers therefore also poll.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import psycopg
import structlog
from psycopg import AsyncConnection

from server.core.errors import UnavailableError
from server.store.pool import Pool, answered_within, connected, conninfo

_CHANNEL = "evershell_changes"
# PostgreSQL accepts payloads of less than 8000 bytes (NOTIFY).
_MAX_PAYLOAD_BYTES = 7_900
_RETRY_SECONDS = 0.25
# A listener checks its connection this often, and reconnects if there is no answer in time.
_LISTENER_CHECK_SECONDS = 1.0
_LISTENER_ANSWER_SECONDS = 1.5

_log = structlog.get_logger()


class ChangeWakeup:
    """Implements server.core.ports.Wakeup."""

    def __init__(self, poll_seconds: float, draining: asyncio.Event) -> None:
        self._poll_seconds = poll_seconds
        self._draining = draining
        self._has_ended = False
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        """Returns after `poll_seconds` at the latest."""
        if self._may_wait():
            await _wait(self._changed, min(timeout_seconds, self._poll_seconds))
            self._changed.clear()
        return self._may_wait()

    def wake(self) -> None:
        """Ends the wait."""
        self._changed.set()

    def end(self) -> None:
        """Ends this wait and every later one."""
        self._has_ended = True
        self.wake()

    def _may_wait(self) -> bool:
        return not (self._has_ended or self._draining.is_set())


class FleetWakeup:
    """A subscription to all workspaces."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ids: set[str] = set()
        self._missed = False

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last return.

        An empty set means that the timeout has passed or that changes may have been missed.
        """
        await _wait(self._changed, timeout_seconds)
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


class PostgresWakeups:
    """Implements server.core.ports.Wakeups. Sends and receives while its context is entered."""

    def __init__(self, pool: Pool, database_url: str, *, poll_seconds: float = 5.0) -> None:
        """Sends through `pool`, and receives on its own connection to `database_url`."""
        self._pool = pool
        self._conninfo = conninfo(database_url)
        self._poll_seconds = poll_seconds
        # Identifies notifications of this process, whose subscribers are woken directly.
        self._origin = uuid4().hex
        self._subscriptions: defaultdict[str, set[ChangeWakeup]] = defaultdict(set)
        self._fleet: set[FleetWakeup] = set()
        self._queue: set[str] = set()
        self._queued = asyncio.Event()
        self._listening = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._draining = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            _start(self._listen(), "wakeups-listen"),
            _start(self._send(), "wakeups-send"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def announce(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        """Implements server.store.announce.Announce."""
        self._wake(workspace_id)
        self._queue.add(workspace_id)
        self._queued.set()

    def drain(self) -> None:
        """Ends all current and later waits, because the process is about to end."""
        self._draining.set()
        self._wake_all()

    def end_waits(self) -> None:
        """Ends all current waits, so that their calls answer with the current state.

        Does not affect later subscriptions.
        """
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.end()

    async def listening(self) -> None:
        """Returns when the listener is connected."""
        await self._listening.wait()

    async def disconnected(self) -> None:
        """Returns when the listener has lost its connection.

        It notices within 3 s, also if the database is frozen.
        """
        await self._disconnected.wait()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str) -> AsyncIterator[ChangeWakeup]:
        wakeup = ChangeWakeup(self._poll_seconds, self._draining)
        self._subscriptions[workspace_id].add(wakeup)
        try:
            yield wakeup
        finally:
            subscribers = self._subscriptions[workspace_id]
            subscribers.discard(wakeup)
            if not subscribers:
                del self._subscriptions[workspace_id]

    @asynccontextmanager
    async def subscribe_all(self) -> AsyncIterator[FleetWakeup]:
        """Subscribes to all changes, of any workspace, that are committed from now on."""
        wakeup = FleetWakeup()
        self._fleet.add(wakeup)
        try:
            yield wakeup
        finally:
            self._fleet.discard(wakeup)

    def _wake(self, workspace_id: str) -> None:
        for wakeup in self._subscriptions.get(workspace_id, ()):
            wakeup.wake()
        for fleet_wakeup in self._fleet:
            fleet_wakeup.wake(workspace_id)

    def _wake_all(self) -> None:
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.wake()
        for fleet_wakeup in self._fleet:
            fleet_wakeup.wake(None)

    async def _listen(self) -> None:
        while True:
            try:
                async with await AsyncConnection.connect(
                    self._conninfo, autocommit=True
                ) as connection:
                    with answered_within(connection, _LISTENER_ANSWER_SECONDS):
                        await connection.execute(f"LISTEN {_CHANNEL}")
                    self._disconnected.clear()
                    self._listening.set()
                    # Notifications sent while the listener was disconnected are lost.
                    self._wake_all()
                    await self._receive(connection)
            except psycopg.Error as error:
                _log.warning("wakeups_listener_lost", error=str(error).strip())
            self._listening.clear()
            self._disconnected.set()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _receive(self, connection: AsyncConnection[Any]) -> None:
        while True:
            async for notification in connection.notifies(timeout=_LISTENER_CHECK_SECONDS):
                origin, *ids = notification.payload.split("\n")
                if origin != self._origin:
                    for workspace_id in ids:
                        self._wake(workspace_id)
            with answered_within(connection, _LISTENER_ANSWER_SECONDS):
                await connection.execute("SELECT 1")

    async def _send(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            ids, self._queue = self._queue, set()
            try:
                async with connected(self._pool) as connection:
                    for payload in _payloads(self._origin, ids):
                        await connection.execute(
                            "SELECT pg_notify(%s, %s)", (_CHANNEL, payload), prepare=True
                        )
            except UnavailableError as error:
                _log.warning("wakeups_not_sent", error=str(error).strip(), workspaces=len(ids))
                self._queue |= ids
                self._queued.set()
                await asyncio.sleep(_RETRY_SECONDS)


def _payloads(origin: str, ids: set[str]) -> list[str]:
    """Splits the ids into payloads that fit: the origin, then one id a line."""
    payloads, payload = [], origin
    for workspace_id in ids:
        if len(payload) + 1 + len(workspace_id) > _MAX_PAYLOAD_BYTES:
            payloads.append(payload)
            payload = origin
        payload = f"{payload}\n{workspace_id}"
    return [*payloads, payload]


async def _wait(event: asyncio.Event, timeout_seconds: float) -> None:
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        pass


def _start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    """Logs an error of a task that should end only by cancellation."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("wakeups_task_failed", task=task.get_name(), exc_info=error)
