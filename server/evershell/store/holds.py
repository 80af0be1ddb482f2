"""Holds of organizations, and the lock that orders holds and submissions."""

from dataclasses import asdict
from typing import Any

from psycopg import AsyncCursor

from evershell.core.change import Hold
from evershell.core.event import AuditEntry
from evershell.store.audit import store_audit_entry
from evershell.store.part import Part
from evershell.store.pool import Connection, connected, fetch_one
from evershell.store.statements import statements

SQL = statements("holds", lock_class=0x6576_6C68)


async def share_hold(connection: Connection, org_id: str) -> AsyncCursor[Any]:
    """Takes the lock of the organization in shared mode, for a call that a hold would refuse.

    Returns a cursor with the row of the hold, if there is one. `hold_of` decodes the row.
    """
    org = {"org_id": org_id}
    await connection.execute(SQL.share_hold_lock, org, prepare=True)
    return await connection.execute(SQL.get_hold, org, prepare=True, binary=True)


def hold_of(row: Any) -> Hold | None:
    """The hold in the row; None without a row."""
    return None if row is None else Hold(**row._asdict())


class Holds(Part):
    """Implements core.ports.Holds, and Fleet.count_holds."""

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        values = asdict(hold)
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(SQL.lock_hold, values)
            await connection.execute(SQL.add_hold, values)
            cursor = await connection.execute(SQL.get_hold, values)
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
            await connection.execute(SQL.lock_hold, {"org_id": org_id})
            await connection.execute(SQL.remove_hold, {"org_id": org_id})
            await store_audit_entry(connection, audit)

    async def get_hold(self, org_id: str) -> Hold | None:
        return hold_of(await fetch_one(self._pool, SQL.get_hold, org_id=org_id))

    async def count_holds(self) -> int:
        row = await fetch_one(self._pool, SQL.count_holds)
        return int(row.number)
