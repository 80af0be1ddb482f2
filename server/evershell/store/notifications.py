"""Sends and receives the ids of changed workspaces, with PostgreSQL's NOTIFY and LISTEN.

A background task sends the notification after the commit, not within the transaction: PostgreSQL
takes a lock on the whole cluster while a transaction that has notified commits, so all such commits
would wait for each other. One notification carries the ids of all workspaces that changed while the
previous one was in flight.

A notification is lost if a process dies between commit and notification, or if a listener is
reconnecting. Receivers therefore also poll.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import StrEnum
from uuid import uuid4

import psycopg
import structlog

from evershell.core.errors import UnavailableError
from evershell.store.hang_up import answered_within
from evershell.store.pool import Pool, connected, conninfo
from evershell.store.primary import PrimaryConnection, connect_to_session


class Channel(StrEnum):
    """The channels of NOTIFY."""

    # Changes of workspaces in which some process has subscribers. Workers listen.
    CHANGES = "evershell_changes"
    # Changes that the fleet controller has to act on without delay. Controllers listen.
    FLEET = "evershell_fleet"


# PostgreSQL accepts payloads of less than 8000 bytes (NOTIFY).
_MAX_PAYLOAD_BYTES = 7_900
_RETRY_SECONDS = 0.25
# A listener checks its connection this often, and reconnects if there is no answer in time.
_LISTENER_CHECK_SECONDS = 1.0
_LISTENER_ANSWER_SECONDS = 1.5

_log = structlog.get_logger()


class Notifications:
    """The notifications that this process sends on both channels and receives on one."""

    def __init__(
        self,
        pool: Pool,
        database_url: str,
        channel: Channel,
        receive: Callable[[str], None],
        listener_connected: Callable[[], None],
    ) -> None:
        """Sends through `pool`, and listens to `channel` on its own connection to `database_url`.

        Calls `receive` with the id of each workspace that this or another process announces, and
        `listener_connected` each time the listener has connected: notifications before that may be
        lost.
        """
        self._pool = pool
        self._conninfo = conninfo(database_url)
        self._channel = channel
        self._receive = receive
        self._listener_connected = listener_connected
        # Identifies notifications of this process, which receives its own directly.
        self._origin = uuid4().hex
        self._queue: defaultdict[Channel, set[str]] = defaultdict(set)
        self._queued = asyncio.Event()
        self._listening = asyncio.Event()
        self._disconnected = asyncio.Event()

    def announce(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        """Implements store.announce.Announce."""
        if reconcile or self._channel is Channel.CHANGES:
            self._receive(workspace_id)
        if watched:
            self._enqueue(Channel.CHANGES, workspace_id)
        if reconcile:
            self._enqueue(Channel.FLEET, workspace_id)

    async def listening(self) -> None:
        """Returns when the listener is connected."""
        await self._listening.wait()

    async def disconnected(self) -> None:
        """Returns when the listener has lost its connection.

        It notices within 3 s, even if the database is frozen.
        """
        await self._disconnected.wait()

    async def run(self) -> None:
        """Sends and receives until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="notifications-listen")
            tasks.create_task(self._send(), name="notifications-send")

    def _enqueue(self, channel: Channel, workspace_id: str) -> None:
        self._queue[channel].add(workspace_id)
        self._queued.set()

    async def _listen(self) -> None:
        # The problems of this outage that are in the log. Each is logged once.
        logged: set[str] = set()
        while True:
            try:
                async with await connect_to_session(self._conninfo) as connection:
                    with answered_within(connection, _LISTENER_ANSWER_SECONDS):
                        await connection.execute(f"LISTEN {self._channel}")
                    logged.clear()
                    self._disconnected.clear()
                    self._listening.set()
                    self._listener_connected()
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
            async for notification in connection.notifies(timeout=_LISTENER_CHECK_SECONDS):
                origin, *ids = notification.payload.split("\n")
                if origin != self._origin:
                    for workspace_id in ids:
                        self._receive(workspace_id)
            with answered_within(connection, _LISTENER_ANSWER_SECONDS):
                await connection.execute("SELECT 1")

    async def _send(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            queue, self._queue = self._queue, defaultdict(set)
            try:
                async with connected(self._pool) as connection:
                    for channel, ids in queue.items():
                        for payload in _payloads(self._origin, ids):
                            await connection.execute(
                                "SELECT pg_notify(%s, %s)", (str(channel), payload), prepare=True
                            )
            except UnavailableError as error:
                _log.warning("notifications_not_sent", error=str(error).strip())
                for channel, ids in queue.items():
                    for workspace_id in ids:
                        self._enqueue(channel, workspace_id)
                await asyncio.sleep(_RETRY_SECONDS)


def _payloads(origin: str, ids: Iterable[str]) -> list[str]:
    """Splits the ids into payloads that fit: the origin, then one id a line."""
    payloads, payload = [], origin
    for workspace_id in ids:
        if len(payload) + 1 + len(workspace_id) > _MAX_PAYLOAD_BYTES:
            payloads.append(payload)
            payload = origin
        payload = f"{payload}\n{workspace_id}"
    return [*payloads, payload]
