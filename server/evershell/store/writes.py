"""Writes the rows of a change."""

from dataclasses import replace
from functools import cache

from evershell.core.change import Change, Locked
from evershell.store import idempotency_keys
from evershell.store.audit import INSERT, audit_values
from evershell.store.pool import Connection
from evershell.store.rows import (
    EVENT_COLUMNS,
    TASK_COLUMNS,
    WORKSPACE_COLUMNS,
    Row,
    event_values,
    json_value,
    task_values,
    workspace_values,
)


@cache
def insert(table: str, columns: tuple[str, ...]) -> str:
    """The statement that inserts a row with these columns."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"


@cache
def update(table: str, columns: tuple[str, ...]) -> str:
    """The statement that updates these columns of one row."""
    assignments = ", ".join(f"{column} = %s" for column in columns)
    return f"UPDATE {table} SET {assignments} WHERE id = %s"


async def write_change(connection: Connection, locked: Locked, change: Change) -> Change:
    """Writes the rows that have changed. Returns the change with its `last_seq`."""
    workspace_id, seq = locked.workspace.id, locked.workspace.last_seq
    change = replace(change, workspace=replace(change.workspace, last_seq=seq + len(change.events)))
    await _write_row(
        connection,
        "workspaces",
        WORKSPACE_COLUMNS,
        workspace_values(locked.workspace),
        workspace_values(change.workspace),
    )
    if change.task is not None:
        before = (
            locked.task if locked.task is not None and locked.task.id == change.task.id else None
        )
        old = None if before is None else task_values(before)
        await _write_row(connection, "tasks", TASK_COLUMNS, old, task_values(change.task))
    for number, event in enumerate(change.events, seq + 1):
        await connection.execute(
            insert("events", EVENT_COLUMNS),
            event_values(workspace_id, number, event),
            prepare=True,
        )
    if change.audit is not None:
        await connection.execute(INSERT, audit_values(change.audit), prepare=True)
    if change.first_call is not None:
        await idempotency_keys.store_key(connection, change.first_call)
    return change


async def _write_row(
    connection: Connection, table: str, columns: tuple[str, ...], old: Row | None, new: Row
) -> None:
    """Inserts the row, or updates the columns that differ, if any."""
    if old is None:
        query, parameters = insert(table, columns), list(new)
    else:
        differing = [
            (column, after)
            for column, before, after in zip(columns, old, new, strict=True)
            if before != after
        ]
        if not differing:
            return
        changed = tuple(column for column, _ in differing)
        query, parameters = update(table, changed), [value for _, value in differing] + [new[0]]
    wrapped = [json_value(value) if isinstance(value, dict) else value for value in parameters]
    await connection.execute(query, wrapped)
