"""Tells every process that a workspace has changed, with PostgreSQL's LISTEN and NOTIFY.

The notification is sent behind the commit, by a task of its own, and not within the transaction: PostgreSQL takes a lock on the
whole cluster while a transaction that has notified commits, so that all such commits would wait for each other. One
notification carries all ids that came up while the one before was under way. What is lost on the way (a process that dies
between commit and notification, a listener that is reconnecting) is made good by the poll: no wait is longer than that.
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
# PostgreSQL takes payloads of less than 8000 bytes.
_MAX_PAYLOAD_BYTES = 7_900
_RETRY_SECONDS = 0.25
# A listener that hears nothing asks this often whether its server is still there, and takes it for gone after this.
_LISTENER_CHECK_SECONDS = 1.0
_LISTENER_ANSWER_SECONDS = 1.5

_log = structlog.get_logger()


class ChangeWakeup:
    """Implements server.core.ports.Wakeup."""

    def __init__(self, poll_seconds: float, draining: asyncio.Event) -> None:
        self._poll_seconds = poll_seconds
        self._draining = draining
        self._is_over = False
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        """See the port. It returns after the poll's time at most."""
        if self._goes_on():
            await _wait(self._changed, min(timeout_seconds, self._poll_seconds))
            self._changed.clear()
        return self._goes_on()

    def wake(self) -> None:
        """Ends the wait."""
        self._changed.set()

    def end(self) -> None:
        """Ends this wait, and every later one."""
        self._is_over = True
        self.wake()

    def _goes_on(self) -> bool:
        return not (self._is_over or self._draining.is_set())


class FleetWakeup:
    """A subscription to all workspaces."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ids: set[str] = set()
        self._missed = False

    async def wait(self, timeout_seconds: float) -> set[str]:
        """The ids of the workspaces that have changed since the last return.

        Empty: the time is over, or changes may have been missed; look at all of them.
        """
        await _wait(self._changed, timeout_seconds)
        self._changed.clear()
        ids, self._ids = self._ids, set()
        missed, self._missed = self._missed, False
        return set() if missed else ids

    def wake(self, workspace_id: str | None) -> None:
        """Ends the wait; None: changes may have been missed."""
        if workspace_id is None:
            self._missed = True
        else:
            self._ids.add(workspace_id)
        self._changed.set()


class PostgresWakeups:
    """Implements server.core.ports.Wakeups. It works while its context is entered: `async with PostgresWakeups(...)`."""

    def __init__(self, pool: Pool, database_url: str, *, poll_seconds: float = 5.0) -> None:
        """Notifications are sent through the pool, and received on a connection of its own to `database_url`."""
        self._pool = pool
        self._conninfo = conninfo(database_url)
        self._poll_seconds = poll_seconds
        # Marks our own notifications, whose subscribers have been woken directly.
        self._origin = uuid4().hex
        self._subscriptions: defaultdict[str, set[ChangeWakeup]] = defaultdict(set)
        self._fleet: set[FleetWakeup] = set()
        self._queue: set[str] = set()
        self._queued = asyncio.Event()
        self._listening = asyncio.Event()
        self._deaf = asyncio.Event()
        self._draining = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [_start(self._listen(), "wakeups-listen"), _start(self._send(), "wakeups-send")]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def announce(self, workspace_id: str) -> None:
        """Says that a change of the workspace is committed. Returns at once."""
        self._wake(workspace_id)
        self._queue.add(workspace_id)
        self._queued.set()

    def drain(self) -> None:
        """Ends every wait, now and from here on: the process is about to end."""
        self._draining.set()
        self._wake_all()

    def end_waits(self) -> None:
        """Has whoever waits now answer with what there is; whoever comes later waits as ever."""
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.end()

    async def listening(self) -> None:
        """Returns once changes of other processes arrive without the poll."""
        await self._listening.wait()

    async def deaf(self) -> None:
        """Returns once the database does not answer: within 3 s, also when it is frozen."""
        await self._deaf.wait()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str) -> AsyncIterator[ChangeWakeup]:
        """See the port."""
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
        """Every change of any workspace committed from here on wakes it, until the context is left."""
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
                async with await AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    with answered_within(connection, _LISTENER_ANSWER_SECONDS):
                        await connection.execute(f"LISTEN {_CHANNEL}")
                    self._deaf.clear()
                    self._listening.set()
                    # What was committed while nobody listened is not told again.
                    self._wake_all()
                    await self._receive(connection)
            except psycopg.Error as error:
                _log.warning("wakeups_listener_lost", error=str(error).strip())
            self._listening.clear()
            self._deaf.set()
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
                        await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, payload), prepare=True)
            except UnavailableError as error:
                _log.warning("wakeups_not_sent", error=str(error).strip(), workspaces=len(ids))
                self._queue |= ids
                self._queued.set()
                await asyncio.sleep(_RETRY_SECONDS)


def _payloads(origin: str, ids: set[str]) -> list[str]:
    """The origin and as many ids as fit, a line each."""
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
    """These tasks end by being cancelled only; anything else is a bug, which must not go unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("wakeups_task_failed", task=task.get_name(), exc_info=error)
