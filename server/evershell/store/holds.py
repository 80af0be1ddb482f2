"""Holds of organizations, and the lock that orders holds and submissions."""

from dataclasses import fields
from typing import Any

from psycopg import AsyncCursor

from evershell.core.change import Hold
from evershell.core.event import AuditEntry
from evershell.store.audit import store_audit_entry
from evershell.store.connections import Connection, Pool, connected, fetch_one
from evershell.store.rows import insert

# The lock of an organization is an advisory lock of PostgreSQL, because an organization may have no
# row. A transaction takes it first, before any row, and keeps it until it is committed. So it
# cannot take part in a deadlock. Organizations whose ids have the same hash share a lock, which
# is harmless. The class is an arbitrary number: locks with two numbers have a key space of their
# own.
HOLD_LOCK_CLASS = 0x6576_6C68
LOCK_HOLD = f"SELECT pg_advisory_xact_lock({HOLD_LOCK_CLASS}, hashtext(%s))"
SHARE_HOLD_LOCK = f"SELECT pg_advisory_xact_lock_shared({HOLD_LOCK_CLASS}, hashtext(%s))"
HOLD_COLUMNS = tuple(field.name for field in fields(Hold))
HOLD = ", ".join(HOLD_COLUMNS)
# A statement of its own after the lock, so that it reads what was committed before the lock.
GET_HOLD = f"SELECT {HOLD} FROM org_holds WHERE org_id = %s"
ADD_HOLD = insert("org_holds", HOLD_COLUMNS) + " ON CONFLICT (org_id) DO NOTHING"
REMOVE_HOLD = "DELETE FROM org_holds WHERE org_id = %s"
COUNT_HOLDS = "SELECT count(*) AS number FROM org_holds"


async def share_hold(connection: Connection, org_id: str) -> AsyncCursor[Any]:
    """Takes the lock of the organization, shared with other calls that a hold would refuse.

    The cursor has the hold, if there is one. `hold_of` decodes it.
    """
    await connection.execute(SHARE_HOLD_LOCK, (org_id,), prepare=True)
    return await connection.execute(GET_HOLD, (org_id,), prepare=True, binary=True)


def hold_of(row: Any) -> Hold | None:
    """The hold in the row; None for no row."""
    return None if row is None else Hold(**row._asdict())


class Holds:
    """Implements Store.hold_org, release_org, get_hold and count_holds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        values = (hold.org_id, hold.held_by, hold.held_since, hold.reason)
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(LOCK_HOLD, (hold.org_id,))
            await connection.execute(ADD_HOLD, values)
            cursor = await connection.execute(GET_HOLD, (hold.org_id,))
            await store_audit_entry(connection, audit)
            stored = hold_of(await cursor.fetchone())
        assert stored is not None, "the row was inserted, or there before"
        return stored

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(LOCK_HOLD, (org_id,))
            await connection.execute(REMOVE_HOLD, (org_id,))
            await store_audit_entry(connection, audit)

    async def get_hold(self, org_id: str) -> Hold | None:
        return hold_of(await fetch_one(self._pool, GET_HOLD, (org_id,)))

    async def count_holds(self) -> int:
        row = await fetch_one(self._pool, COUNT_HOLDS, ())
        return int(row.number)
