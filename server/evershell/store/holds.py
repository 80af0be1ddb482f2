"""The holds of organizations: how they are stored, and the lock that orders them.

The lock of an organization is an advisory lock of PostgreSQL, because an organization may have no
row. A transaction takes it first, before any row, and keeps it until it is committed. So it cannot
take part in a deadlock. Organizations whose ids have the same hash share a lock, which is harmless.
"""

from psycopg import AsyncCursor
from psycopg.rows import TupleRow

from evershell.core.audit_entry import AuditEntry
from evershell.core.hold import Hold
from evershell.store.audit import INSERT, audit_values
from evershell.store.pool import Connection, Pool, connected
from evershell.store.rows import Row

# An arbitrary number. Locks with two numbers have a key space of their own.
_LOCK_CLASS = 0x6576_6C68
_LOCK = f"SELECT pg_advisory_xact_lock({_LOCK_CLASS}, hashtext(%s))"
_SHARE_LOCK = f"SELECT pg_advisory_xact_lock_shared({_LOCK_CLASS}, hashtext(%s))"
_COLUMNS = "org_id, held_by, held_since, reason"
# A statement of its own after the lock, so that it reads what was committed before the lock.
_GET = f"SELECT {_COLUMNS} FROM org_holds WHERE org_id = %s"
_ADD = f"INSERT INTO org_holds ({_COLUMNS}) VALUES (%s, %s, %s, %s) ON CONFLICT (org_id) DO NOTHING"
_REMOVE = "DELETE FROM org_holds WHERE org_id = %s"
_COUNT = "SELECT count(*) FROM org_holds"


async def share(connection: Connection, org_id: str) -> AsyncCursor[TupleRow]:
    """Begins a transaction that a hold of the organization would refuse.

    The cursor has the hold, if there is one. `hold_of` decodes it.
    """
    await connection.execute(_SHARE_LOCK, (org_id,), prepare=True)
    return await connection.execute(_GET, (org_id,), prepare=True, binary=True)


def hold_of(row: Row | None) -> Hold | None:
    """The hold of a row."""
    if row is None:
        return None
    return Hold(org_id=row[0], held_by=row[1], held_since=row[2], reason=row[3])


class Holds:
    """Implements the methods of core.ports.Store about holds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        values = (hold.org_id, hold.held_by, hold.held_since, hold.reason)
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(_LOCK, (hold.org_id,))
            await connection.execute(_ADD, values)
            cursor = await connection.execute(_GET, (hold.org_id,))
            await _store_audit(connection, audit)
            stored = hold_of(await cursor.fetchone())
        assert stored is not None, "the row was inserted, or there before"
        return stored

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(_LOCK, (org_id,))
            await connection.execute(_REMOVE, (org_id,))
            await _store_audit(connection, audit)

    async def get_hold(self, org_id: str) -> Hold | None:
        async with connected(self._pool) as connection:
            return hold_of(await (await connection.execute(_GET, (org_id,))).fetchone())

    async def count_holds(self) -> int:
        async with connected(self._pool) as connection:
            row = await (await connection.execute(_COUNT)).fetchone()
        assert row is not None
        return int(row[0])


async def _store_audit(connection: Connection, audit: AuditEntry | None) -> None:
    if audit is not None:
        await connection.execute(INSERT, audit_values(audit), prepare=True)
