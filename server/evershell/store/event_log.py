"""How far the log of the events of all workspaces can be read.

Each event has a position, which its transaction takes from a sequence when it writes the event. The
positions of a workspace are in the order of `seq`, because its events are written under its lock.
Across workspaces, an event may become visible after events with later positions, so a reader that
continues after the last position it saw would miss events. Readers therefore read only up to the
position that `Settled.after` returns.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from evershell.backoff import backoff
from evershell.core.errors import UnavailableError
from evershell.core.event import LogEntry, LogScope
from evershell.store.events import MAX_BATCH_BYTES, payload_bytes
from evershell.store.part import Part
from evershell.store.pool import Connection, Connections, connected, fetch_all, fetch_one
from evershell.store.rows import event_of
from evershell.store.shared_reads import SharedReads
from evershell.store.statements import statements

# The maximum number of positions by which a reader advances at a time. The deliveries of their
# events to 20 webhooks are recorded within the time limit of a statement, on a slow machine too.
MAX_POSITIONS = 250
# How long a reader that begins waits for the transactions that are writing events. PostgreSQL ends
# a transaction of the service that is silent for 2.5 s.
_BEGIN_SECONDS = 3.0

SQL = statements(
    "event_log",
    max_positions=MAX_POSITIONS,
    max_batch_bytes=MAX_BATCH_BYTES,
    payload_bytes=payload_bytes("e."),
)

# The scopes, the positions `after` and `until`, and a limit.
_Place = tuple[frozenset[LogScope], int, int, int]


class _Writers(NamedTuple):
    """The open transactions that have written or removed events."""

    # When the server of the database started. Another server may not have the same transactions.
    server: datetime
    transactions: frozenset[str]


class SettledPosition(NamedTuple):
    """How far the log can be read."""

    position: int
    # Whether no event follows the position.
    is_last: bool
    # When the server of the database started. After a fail-over, the log may end earlier.
    server: datetime


class Settled:
    """Finds the position up to which each event is visible, or will never exist.

    A missing position belongs to a transaction that is open, or to one that was rolled back. A
    transaction locks the table of events before it takes a position, and unlocks it after its
    events have become visible. So the transactions that hold such a lock, listed after the position
    was found missing, are all that can still fill it. When they have ended, the position is
    settled.
    """

    def __init__(self) -> None:
        # The last position that was read after a missing one, and the transactions that were open
        # then.
        self._seen = 0
        self._writers: _Writers | None = None

    async def after(self, connection: Connection, position: int) -> SettledPosition:
        """The settled position, which is at least `position`.

        Read the events up to it with a later statement: the statements of this method may not see
        all of them. Raises psycopg.Error.
        """
        is_blocked = False
        if self._seen > position and self._writers is not None:
            now = await _writers(connection)
            # After a fail-over, positions that were seen at the former server do not count.
            if now.server == self._writers.server:
                is_blocked = not self._writers.transactions.isdisjoint(now.transactions)
                if not is_blocked:
                    return SettledPosition(self._seen, False, now.server)
        cursor = await connection.execute(SQL.look_ahead, {"position": position}, prepare=True)
        row = await cursor.fetchone()
        assert row is not None
        if row.whole == row.last:
            is_last = row.last - position < MAX_POSITIONS
            return SettledPosition(row.whole, is_last, row.server)
        if is_blocked and row.whole < self._seen:
            return SettledPosition(row.whole, False, row.server)
        # Read after the events, so each transaction that has taken one of the missing positions is
        # among them, or has ended.
        self._seen, self._writers = row.last, await _writers(connection)
        settled = row.whole if self._writers.transactions else row.last
        return SettledPosition(settled, False, row.server)


async def _writers(connection: Connection) -> _Writers:
    cursor = await connection.execute(SQL.list_writers, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return _Writers(row.server, frozenset(row.transactions))


class LogEnd:
    """Implements core.ports.LogEnd."""

    def __init__(self, pool: Connections, position: int, server: datetime) -> None:
        self._pool = pool
        self.position = position
        self._server = server
        self._settled = Settled()

    async def advance(self) -> bool:
        async with connected(self._pool) as connection:
            found = await self._settled.after(connection, self.position)
        if found.server != self._server:
            raise UnavailableError("the log may have changed, because the database has failed over")
        self.position = found.position
        return found.is_last


class EventLog(Part):
    """Implements core.ports.EventLog."""

    async def last_position(self) -> int:
        return int((await fetch_one(self._pool.others, SQL.last_position)).position)

    async def find_log_end(self) -> LogEnd:
        end = await fetch_one(self._pool.others, SQL.last_position)
        left = (await self._list_writers()).transactions
        looks, until = 0, time.monotonic() + _BEGIN_SECONDS
        while left:
            if time.monotonic() > until:
                raise UnavailableError("a transaction that writes events is open for long")
            looks += 1
            await asyncio.sleep(backoff(looks, 0.01, 0.25))
            left &= (await self._list_writers()).transactions
        return LogEnd(self._pool.others, end.position, end.server)

    async def list_log_events(
        self,
        scopes: Collection[LogScope],
        after: int,
        until: int,
        limit: int,
        *,
        at_once: bool = False,
    ) -> tuple[Sequence[LogEntry], int]:
        until = min(until, after + MAX_POSITIONS)
        place = (frozenset(scopes), after, until, limit)
        # Watchers that have missed the same events share a read.
        return await (self._read_log(place) if at_once else self._log_reads(place))

    async def _list_writers(self) -> _Writers:
        async with connected(self._pool.others) as connection:
            return await _writers(connection)

    @cached_property
    def _log_reads(self) -> SharedReads[_Place, tuple[Sequence[LogEntry], int]]:
        return SharedReads(self._read_log, at_once=max(1, self._pool.others.size // 4))

    async def _read_log(self, place: _Place) -> tuple[Sequence[LogEntry], int]:
        scopes, after, until, limit = place
        of_users = [each for each in scopes if each.creator_id is not None]
        rows = await fetch_all(
            self._pool.others,
            SQL.list_log_events,
            org_ids=[each.org_id for each in scopes if each.creator_id is None],
            orgs_of_users=[each.org_id for each in of_users],
            user_ids=[each.creator_id for each in of_users],
            after=after,
            until=until,
            limit=limit,
        )
        entries = [LogEntry(event_of(row), row.org_id, row.created_by_user_id) for row in rows]
        is_whole = not rows or len(rows) == rows[0].found < limit
        return entries, until if is_whole else entries[-1].event.position
