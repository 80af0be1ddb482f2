"""How far the log of the events of all workspaces can be read.

Each event has a position, which its transaction takes from a sequence when it writes the event. The
positions of a workspace are in the order of `seq`, because its events are written under its lock.
Across workspaces, an event may become visible after events with later positions, so a reader that
continues after the last position it saw would miss events. Readers therefore read only up to the
position that `Settled.after` returns.
"""

from evershell.store.pool import Connection
from evershell.store.statements import statements

# The maximum number of events by which a reader advances at a time. Their deliveries to 20 webhooks
# are recorded within the time limit of a statement, on a slow machine too.
MAX_EVENTS = 250

SQL = statements("event_log", max_events=MAX_EVENTS)


class Settled:
    """Finds the position up to which each event is visible, or will never exist.

    A missing position belongs to a transaction that is open, or to one that was rolled back. The
    transactions that are open are listed after the position was found missing. When all of them
    have ended, the position is settled. Only transactions that write or remove events count.

    An object belongs to one server of the database. Use a new one after a fail-over.
    """

    def __init__(self) -> None:
        # The last position that was read after a missing one, and the transactions that were open
        # then.
        self._seen = 0
        self._writers: frozenset[str] = frozenset()

    async def after(self, connection: Connection, position: int) -> tuple[int, bool]:
        """Returns the settled position, at least `position`, and whether no event follows it.

        Read the events up to it with a later statement: the statements of this method may not see
        all of them. Raises psycopg.Error.
        """
        is_blocked = False
        if self._seen > position:
            is_blocked = not self._writers.isdisjoint(await _writers(connection))
            if not is_blocked:
                return self._seen, False
        cursor = await connection.execute(SQL.look_ahead, {"position": position}, prepare=True)
        row = await cursor.fetchone()
        assert row is not None
        if row.whole == row.last:
            return row.whole, row.last - position < MAX_EVENTS
        if is_blocked and row.whole < self._seen:
            return row.whole, False
        # Read after the events, so each transaction that has taken one of the missing positions is
        # among them, or has ended.
        self._seen, self._writers = row.last, await _writers(connection)
        return (row.whole if self._writers else row.last), False


async def _writers(connection: Connection) -> frozenset[str]:
    cursor = await connection.execute(SQL.list_writers, prepare=True)
    return frozenset(row.writer for row in await cursor.fetchall())
