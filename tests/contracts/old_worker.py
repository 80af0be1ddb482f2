"""A worker of the previous version: runs the SQL statements of that release, with its columns."""

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from psycopg import AsyncConnection, AsyncTransaction
from psycopg.types.json import Json, Jsonb

from evershell.core.event import cancel_requested_payload
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace
from evershell.store.rows import (
    TASK_COLUMNS,
    WORKSPACE_COLUMNS,
    task_values,
    workspace_values,
)
from tests.contracts.released_worker import released_statements
from tests.support.store.examples import NOW, ORG, USER

Values = Mapping[str, Any]

_STATEMENTS = released_statements()


def released_columns(table: str) -> list[str]:
    """The columns that the table had in the previous version."""
    inserted = re.search(r"\((.*?)\)", _STATEMENTS[f"insert_{table}"])
    assert inserted is not None
    return inserted[1].split(", ")


def workspace_columns(workspace: Workspace) -> Values:
    """The values of all columns, including those that were added after the previous version."""
    return dict(zip(WORKSPACE_COLUMNS, workspace_values(workspace), strict=True))


def task_columns(task: Task) -> Values:
    """The values of all columns, including those that were added after the previous version."""
    return dict(zip(TASK_COLUMNS, task_values(task), strict=True))


def released_row(table: str, values: Values) -> tuple[Any, ...]:
    """The values in the columns of the previous version, in order."""
    return tuple(values[column] for column in released_columns(table))


class OldWorker:
    """A worker of the previous version, on one connection. Prepares every read, as that does."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    def transaction(self) -> AbstractAsyncContextManager[AsyncTransaction]:
        return self._connection.transaction()

    async def read(self, name: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Runs a SELECT statement of the release and returns its rows."""
        cursor = await self._connection.execute(
            _STATEMENTS[name], parameters, prepare=True, binary=True
        )
        return await cursor.fetchall()

    async def insert(self, table: str, values: Values) -> None:
        """Inserts a row. Columns that were added after the release get their defaults."""
        row = [_stored(value) for value in released_row(table, values)]
        await self._connection.execute(_STATEMENTS[f"insert_{table}"], row)

    async def update(self, table: str, row_id: str, **values: object) -> None:
        """Updates some columns of a row."""
        assert set(values) <= set(released_columns(table))
        assignments = ", ".join(f"{column} = %s" for column in values)
        await self._connection.execute(
            f"UPDATE {table} SET {assignments} WHERE id = %s",
            [*map(_stored, values.values()), row_id],
        )

    async def append_event(self, workspace_id: str, seq: int, type_: str, task_id: str) -> None:
        await self.insert(
            "events",
            {
                "workspace_id": workspace_id,
                "seq": seq,
                "type": type_,
                "time": NOW,
                "task_id": task_id,
                "request_id": None,
                "trace_id": None,
                "payload": {},
            },
        )

    async def submit(self, workspace_id: str, task: Task) -> None:
        """Submits a task to an idle workspace."""
        async with self.transaction():
            (workspace,) = await self.read("lock_workspace", workspace_id)
            assert await self.read("current_task", workspace_id) == []
            seq = workspace[released_columns("workspaces").index("last_seq")] + 1
            await self.update(
                "workspaces", workspace_id, status="busy", current_task_id=task.id, last_seq=seq
            )
            await self.insert("tasks", task_columns(task))
            await self.append_event(workspace_id, seq, "task_submitted", task.id)

    async def record_cancellation(self, workspace_id: str, intent: CancelIntent) -> bool:
        """Cancels the current task. Returns whether this call recorded the intent."""
        request = {
            "org_id": ORG,
            "own_only": False,
            "user_id": USER,
            "workspace_id": workspace_id,
            "requested_by": intent.requested_by,
            "credential_kind": intent.credential_kind,
            "requested_at": intent.requested_at.isoformat(),
            "reason": intent.reason,
            "request_id": intent.request_id,
            "force_at": None if intent.force_at is None else intent.force_at.isoformat(),
            "force_requested_by": intent.force_requested_by,
            "payload": cancel_requested_payload(intent),
        }
        ((outcome, *_),) = await self.read("record", Json([request]), True)
        return bool(outcome == "accepted")


def _stored(value: object) -> object:
    return Jsonb(value) if isinstance(value, dict) else value
