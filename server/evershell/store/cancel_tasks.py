"""Finds and cancels many tasks of an organization, and trees of tasks."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from evershell.core import deadline
from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry
from evershell.core.ports import UNDELIVERED, MatchedTask, MatchedTasks, RecordedCancellation
from evershell.core.task import CancelIntent
from evershell.core.task_filter import TaskFilter, TaskSelection
from evershell.store import cancellations
from evershell.store.cancellations import json_of, request_of, result_of
from evershell.store.idempotency_keys import store_key
from evershell.store.part import Part
from evershell.store.pool import ANSWER_TIMEOUT_SECONDS, Connections, connected
from evershell.store.rows import json_value
from evershell.store.statements import statements
from evershell.store.watched_workspaces import is_watched

SQL = statements("cancel_tasks", **vars(cancellations.SQL))


class CancelTasks(Part):
    """Implements match_tasks, cancel_tasks and cancel_tree of core.ports.Cancellations."""

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        parameters = _values_of(wanted) | {
            "org_id": permission.caller.org_id,
            "own_only": permission.own_only,
            "user_id": permission.caller.user_id,
            "force_at": force_at,
            "limit": limit,
        }
        async with connected(self._pool) as connection:
            # Not prepared, so that PostgreSQL plans the query for these values. If ids are given,
            # it then uses the index on the ids.
            cursor = await connection.execute(SQL.match_tasks, parameters, prepare=False)
            rows = await cursor.fetchall()
        if not rows:
            return MatchedTasks(0, 0, ())
        tasks = [MatchedTask(row.workspace_id, row.task_id, row.is_pending) for row in rows]
        return MatchedTasks(rows[0].matched, rows[0].pending, tasks)

    async def cancel_tasks(
        self,
        permission: Permission,
        task_ids: Sequence[str],
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
        *,
        wait: bool = False,
        first_call: Callable[[Mapping[str, bool]], FirstCall] | None = None,
    ) -> Mapping[str, bool]:
        assert len(task_ids) == 1 or not wait, "a transaction with a lock waits for no other"
        request = request_of(permission, intent, trace_id, audit)
        parameters = {"request": json_of(request), "task_ids": list(task_ids), "wait": wait}
        try:
            if first_call is not None:
                rows = await self._cancel_with_key(parameters, first_call)
            else:
                execute = self._wait if wait else self._execute
                rows = await execute(SQL.cancel_tasks, parameters)
        except asyncio.CancelledError:
            # The intents may have been committed before this call was cancelled.
            self._publish(UNDELIVERED, watched=False, reconcile=True)
            raise
        for row in rows:
            self._publish(row.workspace_id, watched=row.watched, reconcile=False)
        if rows:
            self._publish(UNDELIVERED, watched=False, reconcile=True)
        self._cancelled(sum(row.is_new for row in rows))
        return _recorded(rows)

    async def _cancel_with_key(
        self, parameters: Mapping[str, Any], first_call: Callable[[Mapping[str, bool]], FirstCall]
    ) -> Sequence[Any]:
        # May wait for another transaction with the same key, so it uses the share for waits.
        async with connected(self._pool.bulk) as connection, connection.transaction():
            cursor = await connection.execute(SQL.cancel_tasks, parameters, prepare=True)
            rows = await cursor.fetchall()
            await store_key(connection, first_call(_recorded(rows)))
        return rows

    async def cancel_tree(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        request = request_of(permission, intent, trace_id, audit)
        request |= {"workspace_id": workspace_id, "task_id": task_id}
        try:
            (row,) = await self._wait(SQL.cancel_tree, {"request": json_of(request)})
        except asyncio.CancelledError:
            # The intents may have been committed before this call was cancelled.
            self._publish(workspace_id, watched=True, reconcile=False)
            self._publish(UNDELIVERED, watched=False, reconcile=True)
            raise
        result, descendants = result_of(row), row.descendants or []
        if result.outcome in ("accepted", "already_requested"):
            watched = is_watched(row.watched_until, intent.requested_at)
            self._publish(workspace_id, watched=watched, reconcile=False)
        for each in descendants:
            self._publish(each["workspace_id"], watched=each["watched"], reconcile=False)
        if descendants:
            self._publish(UNDELIVERED, watched=False, reconcile=True)
        recorded = sum(each["outcome"] == "accepted" for each in descendants)
        self._cancelled(recorded)
        return replace(result, descendants_cancelled=recorded)

    async def _wait(self, query: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        try:
            async with asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)):
                return await self._execute(query, parameters, self._pool.bulk)
        except TimeoutError as error:
            raise UnavailableError("Another transaction has locked the workspace.") from error

    async def _execute(
        self, query: str, parameters: Mapping[str, Any], pool: Connections | None = None
    ) -> Sequence[Any]:
        async with connected(pool or self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True)
            return await cursor.fetchall()


def _recorded(rows: Sequence[Any]) -> dict[str, bool]:
    return {row.task_id: row.is_new for row in rows}


def _values_of(wanted: TaskSelection) -> dict[str, Any]:
    """The values of the filter. A field that is not set has None, which matches every task."""
    values = {name: getattr(wanted, name, None) for name in TaskFilter.__slots__}
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    metadata = values["metadata"]
    return values | lists | {"metadata": None if metadata is None else json_value(metadata)}
