"""Publishes the changes of workspaces, and lets calls and the fleet controller subscribe to them.

Subscribers in this process are told directly. Other processes are told with PostgreSQL's NOTIFY and
LISTEN: workers if one of them has marked the workspace (watched_workspaces.py), and controllers if
the leader must act.

A background task sends the notification after the commit, not within the transaction. While a
transaction with a notification commits, PostgreSQL locks the queue of notifications of the whole
cluster, so all such commits would wait for each other. One notification carries the ids of many
workspaces: those that changed while the previous notification was in flight.

A notification is lost if its process dies between the commit and the notification. A listener also
misses notifications while it reconnects. Subscribers therefore also poll.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from enum import StrEnum
from typing import ClassVar, Self
from uuid import uuid4

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from evershell.core.bounds import SIGN_OF_LIFE_SECONDS
from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock
from evershell.store.background import running
from evershell.store.batch import Batch
from evershell.store.connections import (
    ANSWER_SECONDS,
    WORKER_NAME,
    PrimaryConnection,
    answered_within,
    connect_to_session,
    conninfo,
)
from evershell.store.pool import Pool, connected
from evershell.store.statements import statements
from evershell.store.watched_workspaces import WatchedWorkspaces


class Channel(StrEnum):
    """The channels of NOTIFY."""

    # Changes of workspaces for which some process has subscribers. Workers listen.
    CHANGES = "evershell_changes"
    # Changes on which the fleet controller must act without delay. Controllers listen.
    FLEET = "evershell_fleet"


# PostgreSQL accepts payloads of less than 8000 bytes (NOTIFY).
_MAX_PAYLOAD_BYTES = 7_900
# The maximum number of changes in one batch of notifications.
_MAX_BATCH = 1_000
_RETRY_SECONDS = 0.25
SQL = statements("notifications")

_log = structlog.get_logger()


class _Notifications(ABC):
    """Sends notifications on both channels and receives from one, while its context is entered.

    Sends through `pool`, and listens on its own connection to `database_url`.
    """

    _channel: ClassVar[Channel]

    def __init__(self, pool: Pool, database_url: str) -> None:
        self._pool = pool
        self._conninfo = conninfo(database_url)
        # Identifies the notifications of this process. When this process receives one of them, it
        # ignores it, because it has already told its own subscribers.
        self._origin = uuid4().hex
        self._changes: Batch[tuple[Channel, str], None] = Batch(self._send, at_most=_MAX_BATCH)
        self._listening = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._running.push_async_callback(self._changes.drained)
        await self._running.enter_async_context(running(self._run(), "notifications"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    @abstractmethod
    def _receive(self, workspace_id: str) -> None:
        """Tells the subscribers of a change that this or another process has committed."""

    @abstractmethod
    def _connected(self) -> None:
        """Called when the listener has connected. It may have missed earlier notifications."""

    def publish(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        """Implements Publish."""
        if reconcile or self._channel is Channel.CHANGES:
            self._receive(workspace_id)
        if watched:
            self._changes.put((Channel.CHANGES, workspace_id))
        if reconcile:
            self._changes.put((Channel.FLEET, workspace_id))

    async def listening(self) -> None:
        await self._listening.wait()

    async def disconnected(self) -> None:
        """Waits until the listener has lost its connection.

        The listener notices within 3 s, even if the database is frozen.
        """
        await self._disconnected.wait()

    async def _run(self) -> None:
        # The problems of the current outage. Each of them is logged only once.
        logged: set[str] = set()
        while True:
            try:
                async with await connect_to_session(self._conninfo) as connection:
                    with answered_within(connection, ANSWER_SECONDS):
                        await connection.execute(f"LISTEN {self._channel}")
                    logged.clear()
                    self._disconnected.clear()
                    self._listening.set()
                    self._connected()
                    await self._receive_all(connection)
            except psycopg.Error as error:
                problem = str(error).strip()
                if problem not in logged:
                    _log.warning("notifications_listener_lost", error=problem)
                    logged.add(problem)
            self._listening.clear()
            self._disconnected.set()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _receive_all(self, connection: PrimaryConnection) -> None:
        while not connection.is_superseded:
            async for notification in connection.notifies(timeout=SIGN_OF_LIFE_SECONDS):
                origin, *ids = notification.payload.split("\n")
                if origin != self._origin:
                    for workspace_id in ids:
                        self._receive(workspace_id)
            # This statement also shows the fleet controller that the worker is alive.
            with answered_within(connection, ANSWER_SECONDS):
                await connection.execute("SELECT 1")

    async def _send(self, changes: Sequence[tuple[Channel, str]]) -> None:
        of_channels: defaultdict[Channel, list[str]] = defaultdict(list)
        for channel, workspace_id in changes:
            of_channels[channel].append(workspace_id)
        try:
            async with connected(self._pool) as connection:
                for channel, ids in of_channels.items():
                    for payload in _payloads(self._origin, ids):
                        named = {"channel": str(channel), "payload": payload}
                        await connection.execute(SQL.notify, named, prepare=True)
        except UnavailableError as error:
            _log.warning("notifications_not_sent", error=str(error).strip())
            raise


def _payloads(origin: str, ids: Iterable[str]) -> list[str]:
    """Splits the ids into payloads that fit. Each has one line with the origin, then one per id."""
    payloads, payload = [], origin
    for workspace_id in ids:
        if len(payload) + 1 + len(workspace_id) > _MAX_PAYLOAD_BYTES:
            payloads.append(payload)
            payload = origin
        payload = f"{payload}\n{workspace_id}"
    return [*payloads, payload]


class WorkspaceSubscription:
    """Implements core.ports.Subscription while its context is entered.

    Thousands of subscriptions may wait at the same time, so a wait needs only a future and a timer.
    An asyncio.Event would need three times as much memory. To implement the context manager with a
    generator would take another 0.7 kB.
    """

    __slots__ = ("_has_changed", "_has_ended", "_owner", "_waiting", "workspace_id")

    def __init__(self, owner: "WorkspaceSubscriptions", workspace_id: str | None) -> None:
        self._owner = owner
        self.workspace_id = workspace_id
        self._has_ended = False
        self._has_changed = False
        # Done when the current wait is over; None without a wait.
        self._waiting: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self._owner.add(self)
        # The subscriber sees earlier changes in its first read, so they do not end its first wait.
        self._has_changed = False
        return self

    async def __aexit__(self, *_: object) -> None:
        self._owner.remove(self)

    async def wait(self, timeout_seconds: float) -> bool:
        """See core.ports.Subscription.wait. Returns after `poll_seconds` at the latest."""
        if self._may_wait() and not self._has_changed:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(min(timeout_seconds, self._owner.poll_seconds), self._end_wait)
            try:
                await self._waiting
            finally:
                self._waiting = None
                timer.cancel()
        self._has_changed = False
        return self._may_wait()

    def wake(self) -> None:
        self._has_changed = True
        self._end_wait()

    def end(self) -> None:
        """Ends the current wait and all later ones."""
        self._has_ended = True
        self.wake()

    def _end_wait(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _may_wait(self) -> bool:
        return not (self._has_ended or self._owner.is_draining)


class WorkspaceSubscriptions(_Notifications):
    """Implements core.ports.Subscriptions. Calls of a worker wait for changes of a workspace."""

    _channel = Channel.CHANGES

    def __init__(
        self,
        pool: Pool,
        database_url: str,
        clock: Clock,
        *,
        poll_seconds: float = 5.0,
    ) -> None:
        super().__init__(pool, make_conninfo(database_url, application_name=WORKER_NAME))
        self.poll_seconds = poll_seconds
        self.is_draining = False
        # By workspace id; None for those that only wait for the end of the process.
        self._subscriptions: defaultdict[str | None, set[WorkspaceSubscription]]
        self._subscriptions = defaultdict(set)
        self._watched = WatchedWorkspaces(pool, self._receive, clock)

    def subscribe(self, workspace_id: str | None) -> WorkspaceSubscription:
        """A subscription, which begins when its context is entered.

        If the workspace is not marked, this takes one statement and up to 0.25 s.
        """
        return WorkspaceSubscription(self, workspace_id)

    async def add(self, subscription: WorkspaceSubscription) -> None:
        """Begins a subscription, which lasts until `remove`. If `add` raises, nothing has begun."""
        self._subscriptions[subscription.workspace_id].add(subscription)
        if subscription.workspace_id is None:
            return
        try:
            await self._watched.watch(subscription.workspace_id)
        except BaseException:
            self.remove(subscription)
            raise

    def remove(self, subscription: WorkspaceSubscription) -> None:
        subscribers = self._subscriptions[subscription.workspace_id]
        subscribers.discard(subscription)
        if not subscribers:
            del self._subscriptions[subscription.workspace_id]
            if subscription.workspace_id is not None:
                self._watched.leave(subscription.workspace_id)

    def has_subscribers(self, workspace_id: str) -> bool:
        """Whether the workspace has subscribers in this process."""
        return workspace_id in self._subscriptions

    def drain(self) -> None:
        """Ends all current and later waits, because the process is about to end."""
        self.is_draining = True
        for subscribers in self._subscriptions.values():
            for subscription in subscribers:
                subscription.wake()

    def end_waits(self) -> None:
        """Ends the waits of all current subscriptions, so that their calls answer now.

        Later subscriptions can wait as usual.
        """
        for subscribers in self._subscriptions.values():
            for subscription in subscribers:
                subscription.end()

    def _receive(self, workspace_id: str) -> None:
        for subscription in self._subscriptions.get(workspace_id, ()):
            subscription.wake()

    def _connected(self) -> None:
        self._watched.mark_again()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super()._run())
            tasks.create_task(self._watched.run(), name="watched-workspaces")


class FleetSubscription:
    """Implements fleet.pods.Changes."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ids: set[str] = set()
        self._missed = False

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Returns the ids of the workspaces that have changed since the last return.

        Returns an empty set after the timeout, or if changes may have been missed.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()
        ids, self._ids = self._ids, set()
        missed, self._missed = self._missed, False
        return set() if missed else ids

    def wake(self, workspace_id: str | None) -> None:
        """Ends the wait. `workspace_id` is None if changes may have been missed."""
        if workspace_id is None:
            self._missed = True
        else:
            self._ids.add(workspace_id)
        self._changed.set()


class FleetSubscriptions(_Notifications):
    """The subscriptions of the fleet controller to the workspaces on which it must act."""

    _channel = Channel.FLEET

    def __init__(self, pool: Pool, database_url: str) -> None:
        super().__init__(pool, database_url)
        self._subscriptions: set[FleetSubscription] = set()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[FleetSubscription]:
        """Subscribes to the changes of all workspaces on which the controller must act."""
        subscription = FleetSubscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def _receive(self, workspace_id: str) -> None:
        for subscription in self._subscriptions:
            subscription.wake(workspace_id)

    def _connected(self) -> None:
        for subscription in self._subscriptions:
            subscription.wake(None)
