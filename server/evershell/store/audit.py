"""The entries of the audit log: how they are stored and listed."""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from psycopg.types.json import Json

from evershell.core.audit_entry import AuditEntry, AuditFilter
from evershell.core.caller import Permission
from evershell.core.ids import first_audit_id
from evershell.store.pool import Pool, connected
from evershell.store.rows import Row

_COLUMNS = tuple(field.name for field in fields(AuditEntry))
_SELECT = ", ".join(_COLUMNS)
# dataclasses.astuple copies every value, which takes 18 µs.
_values = attrgetter(*_COLUMNS)
# The entry may be stored already: by the call itself, or by an attempt whose answer was lost.
INSERT = (
    f"INSERT INTO audit_entries ({_SELECT}) VALUES ({', '.join(['%s'] * len(_COLUMNS))}) "
    "ON CONFLICT (id) DO NOTHING"
)
# All values in one statement, with the database's types.
_INSERT_MANY = (
    f"INSERT INTO audit_entries ({_SELECT}) "
    f"SELECT {_SELECT} FROM json_populate_recordset(NULL::audit_entries, %s) "
    "ON CONFLICT (id) DO NOTHING"
)
_EXACT = ("workspace_id", "task_id", "actor_id", "rpc", "outcome")
_OWN = (
    "EXISTS (SELECT FROM workspaces WHERE workspaces.id = audit_entries.workspace_id "
    "AND workspaces.org_id = %s AND created_by_user_id = %s)"
)


def audit_values(entry: AuditEntry) -> Row:
    """The values of INSERT."""
    values: Row = _values(entry)
    return values


def audit_json(entry: AuditEntry) -> dict[str, Any]:
    """The entry as an object whose keys are the columns."""
    return dict(zip(_COLUMNS, _values(entry), strict=True)) | {"time": entry.time.isoformat()}


async def store_audit_entries(pool: Pool, entries: Sequence[AuditEntry]) -> None:
    """Stores the entries that are not stored yet. Raises UnavailableError."""
    async with connected(pool) as connection:
        parameters = (Json([audit_json(entry) for entry in entries]),)
        await connection.execute(_INSERT_MANY, parameters)


def audit_query(
    permission: Permission, wanted: AuditFilter, before_id: str, limit: int
) -> tuple[str, Row]:
    """The query of a page, newest first, and its parameters."""
    caller = permission.caller
    conditions, parameters = ["org_id = %s", "id < %s"], [caller.org_id, before_id]
    for column in _EXACT:
        if value := getattr(wanted, column):
            conditions.append(f"{column} = %s")
            parameters.append(value)
    # The ids begin with the time, in milliseconds.
    if wanted.start_time is not None:
        conditions.append("id >= %s")
        parameters.append(first_audit_id(wanted.start_time))
    if wanted.end_time is not None:
        conditions.append("id < %s")
        parameters.append(first_audit_id(wanted.end_time))
    if permission.own_only:
        conditions.append(_OWN)
        parameters += [caller.org_id, caller.user_id or ""]
    query = (
        f"SELECT {_SELECT} FROM audit_entries WHERE {' AND '.join(conditions)} "
        "ORDER BY id DESC LIMIT %s"
    )
    return query, (*parameters, limit)


def audit_entry_of(row: Row) -> AuditEntry:
    """The entry of a row of the query."""
    return AuditEntry(**dict(zip(_COLUMNS, row, strict=True)))
