"""Changes a workspace and its task: locks the rows, decides, and writes what has changed."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from psycopg import AsyncCursor

from evershell.core.change import Change, FirstCall, Locked
from evershell.core.event import AuditEntry
from evershell.core.task_tree import Parent
from evershell.store.audit import store_audit_entry
from evershell.store.holds import hold_of, share_hold
from evershell.store.idempotency_keys import store_key
from evershell.store.part import Part
from evershell.store.pool import Connection, connected
from evershell.store.rows import (
    EVENT_COLUMNS,
    TASK_COLUMNS,
    WORKSPACE_COLUMNS,
    Values,
    event_values,
    insert,
    json_value,
    task_columns,
    task_of,
    task_values,
    update,
    workspace_of,
    workspace_values,
)
from evershell.store.statements import statements
from evershell.store.watched_workspaces import is_watched

SQL = statements("transitions", whole_task=task_columns(started_calls=True))


class Transitions(Part):
    """Implements `transition` and `transition_many` of core.ports.Transitions."""

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        pool = self._pool.others if parent_task_id is None else self._pool.trees
        try:
            async with (
                connected(pool) as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                held = None if org_id is None else await share_hold(connection, org_id)
                parent = None
                if parent_task_id is not None:
                    parent = await _lock_parent(connection, org_id, parent_task_id)
                named = {"workspace_id": workspace_id}
                workspaces = await connection.execute(
                    SQL.lock_workspace, named, prepare=True, binary=True
                )
                tasks = await connection.execute(SQL.current_task, named, prepare=True, binary=True)
                workspace_row, task_row = await workspaces.fetchone(), await tasks.fetchone()
                if workspace_row is None:
                    return None
                locked = Locked(
                    workspace_of(workspace_row),
                    None if task_row is None else task_of(task_row),
                    None if held is None else hold_of(await held.fetchone()),
                    None if parent is None else _parent_of(await parent.fetchone()),
                )
                change = decide(locked)
                change = await _write_change(connection, locked, change)
                if change.lease_seconds is not None:
                    change = await self._extend_lease(connection, change, change.lease_seconds)
        except asyncio.CancelledError:
            # The change may have been committed before this call was cancelled.
            self._publish(workspace_id, watched=True, reconcile=True)
            raise
        # A heartbeat is not published, because nobody waits for it.
        if change.events or change.workspace.status is not locked.workspace.status:
            self._publish(
                workspace_id,
                watched=is_watched(workspace_row.watched_until, self._clock()),
                reconcile=change.workspace.awaits_controller,
            )
        self._committed(change)
        return change

    async def transition_many(
        self,
        workspace_ids: Sequence[str],
        decide: Callable[[Locked], Change | None],
        org_id: str,
        audit: AuditEntry | None = None,
        first_call: Callable[[Sequence[Change]], FirstCall | None] | None = None,
    ) -> Sequence[Change]:
        named = {"org_id": org_id, "workspace_ids": list(workspace_ids)}
        changes, watched = list[Change](), list[bool]()
        try:
            async with connected(self._pool.others) as connection, connection.transaction():
                held = hold_of(await (await share_hold(connection, org_id)).fetchone())
                rows = await (await connection.execute(SQL.lock_idle, named)).fetchall()
                async with connection.pipeline():
                    for row in rows:
                        locked = Locked(workspace_of(row), None, held)
                        change = decide(locked)
                        if change is not None:
                            changes.append(await _write_change(connection, locked, change))
                            watched.append(is_watched(row.watched_until, self._clock()))
                    await store_audit_entry(connection, audit)
                call = first_call(changes) if first_call is not None else None
                if call is not None:
                    await store_key(connection, call)
        except asyncio.CancelledError:
            # The changes may have been committed before this call was cancelled.
            for workspace_id in workspace_ids:
                self._publish(workspace_id, watched=True, reconcile=True)
            raise
        for change, is_followed in zip(changes, watched, strict=True):
            at = change.workspace
            self._publish(at.id, watched=is_followed, reconcile=at.awaits_controller)
            self._committed(change)
        return changes

    async def _extend_lease(
        self, connection: Connection, change: Change, lease_seconds: float
    ) -> Change:
        """Renews the lease of the workspace, which the connection has locked."""
        parameters = {
            "workspace_id": change.workspace.id,
            "lease_seconds": lease_seconds,
            "now": self._clock(),
        }
        cursor = await connection.execute(SQL.extend_lease, parameters, prepare=True, binary=True)
        row = await cursor.fetchone()
        assert row is not None
        leased = replace(change.workspace, lease_expires_at=row.lease_expires_at)
        return replace(change, workspace=leased)


async def _lock_parent(
    connection: Connection, org_id: str | None, task_id: str
) -> AsyncCursor[Any]:
    """Locks the tree of the task, and then reads the task. `_parent_of` decodes its row."""
    named = {"org_id": org_id, "task_id": task_id}
    await connection.execute(SQL.lock_tree, named, prepare=True)
    return await connection.execute(SQL.get_parent, named, prepare=True, binary=True)


def _parent_of(row: Any) -> Parent | None:
    task = None if row is None else task_of(row)
    return None if task is None else Parent(workspace_of(row), task, row.open_descendants)


async def _write_change(connection: Connection, locked: Locked, change: Change) -> Change:
    """Writes the changed rows. Returns the change with the new `last_seq`."""
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
            insert("events", EVENT_COLUMNS, position="nextval('event_positions')"),
            event_values(workspace_id, number, event),
            prepare=True,
        )
    await store_audit_entry(connection, change.audit)
    if change.first_call is not None:
        await store_key(connection, change.first_call)
    return change


async def _write_row(
    connection: Connection, table: str, columns: tuple[str, ...], old: Values | None, new: Values
) -> None:
    """Inserts the row if `old` is None. Otherwise updates the columns that differ."""
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
