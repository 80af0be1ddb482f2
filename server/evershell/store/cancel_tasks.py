"""Finds and cancels many tasks of an organization, and trees of tasks."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from evershell.core import deadline
from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry
from evershell.core.ports import UNDELIVERED, MatchedTask, MatchedTasks, RecordedCancellation
from evershell.core.task import CancelIntent
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from evershell.store.cancellations import RESULT_COLUMNS, json_of, request_of, result_of
from evershell.store.connections import ANSWER_TIMEOUT_SECONDS, Pool, connected
from evershell.store.notifications import Publish
from evershell.store.rows import Values, json_value
from evershell.store.watched_workspaces import is_watched

_CANCEL = (
    "SELECT workspace_id, task_id, outcome = 'accepted' AS is_new, watched FROM cancel_tasks("
    "p_request => json_populate_record(NULL::cancellation_request, %s), "
    "p_task_ids => %s, p_wait => %s)"
)
_CANCEL_TREE = (
    f"SELECT {RESULT_COLUMNS}, descendants "
    "FROM cancel_tree(json_populate_record(NULL::cancellation_request, %s))"
)
# By the index workspaces_with_task. The counts are those of all rows, not only of the first ones.
_MATCH = (
    "SELECT workspace_id, task_id, is_pending, count(*) OVER () AS matched, "
    "count(*) FILTER (WHERE is_pending) OVER () AS pending FROM ("
    "SELECT w.id AS workspace_id, t.id AS task_id, "
    "CASE cancellation_outcome(w, t, true, false, NULL) WHEN 'accepted' THEN true "
    "WHEN 'already_requested' THEN is_forced_earlier(t, %s) ELSE false END AS is_pending "
    "FROM workspaces w JOIN tasks t ON t.id = w.current_task_id "
    "WHERE w.org_id = %s AND w.current_task_id IS NOT NULL "
    "AND t.status IN ('submitted', 'delivered', 'running') {}"
    ") found ORDER BY is_pending DESC, task_id LIMIT %s"
)


class CancelTasks:
    """Implements Store.match_tasks, Store.cancel_tasks and Store.cancel_tree."""

    def __init__(self, pool: Pool, publish: Publish, recorded: Callable[[int], None]) -> None:
        """Calls `recorded` with the number of intents of each transaction."""
        self._pool = pool
        self._publish = publish
        self._recorded = recorded
        # Calls that wait for a lock use at most a quarter of the connections.
        self._waiting_connections = asyncio.Semaphore(max(1, pool.max_size // 4))

    async def match(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        """See Store.match_tasks."""
        conditions, values = _conditions(permission, wanted)
        query = _MATCH.format("".join(f"AND {condition} " for condition in conditions))
        parameters = (force_at, permission.caller.org_id, *values, limit)
        async with connected(self._pool) as connection:
            rows = await (await connection.execute(query, parameters)).fetchall()
        if not rows:
            return MatchedTasks(0, 0, ())
        tasks = [MatchedTask(row.workspace_id, row.task_id, row.is_pending) for row in rows]
        return MatchedTasks(rows[0].matched, rows[0].pending, tasks)

    async def cancel(
        self,
        permission: Permission,
        task_ids: Sequence[str],
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
        *,
        wait: bool = False,
    ) -> Mapping[str, bool]:
        """See Store.cancel_tasks."""
        assert len(task_ids) == 1 or not wait, "a transaction with a lock waits for no other"
        request = request_of(permission, intent, trace_id, audit)
        parameters = (json_of(request), list(task_ids), wait)
        try:
            execute = self._wait if wait else self._execute
            rows = await execute(_CANCEL, parameters)
        except asyncio.CancelledError:
            # The intents may have been committed before the cancellation.
            self._publish(UNDELIVERED, watched=False, reconcile=True)
            raise
        for row in rows:
            self._publish(row.workspace_id, watched=row.watched, reconcile=False)
        if rows:
            self._publish(UNDELIVERED, watched=False, reconcile=True)
        self._recorded(sum(row.is_new for row in rows))
        return {row.task_id: row.is_new for row in rows}

    async def cancel_tree(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        """See Store.cancel_tree."""
        request = request_of(permission, intent, trace_id, audit)
        request |= {"workspace_id": workspace_id, "task_id": task_id}
        try:
            (row,) = await self._wait(_CANCEL_TREE, (json_of(request),))
        except asyncio.CancelledError:
            # The intents may have been committed before the cancellation.
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
        self._recorded(recorded)
        return replace(result, descendants_cancelled=recorded)

    async def _wait(self, query: str, parameters: Values) -> Sequence[Any]:
        try:
            async with (
                asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)),
                self._waiting_connections,
            ):
                return await self._execute(query, parameters)
        except TimeoutError as error:
            raise UnavailableError("Another transaction has locked the workspace.") from error

    async def _execute(self, query: str, parameters: Values) -> Sequence[Any]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True)
            return await cursor.fetchall()


def _conditions(permission: Permission, wanted: TaskSelection) -> tuple[list[str], list[object]]:
    """The conditions of the filter and of the permission, and their parameters."""
    conditions = [] if isinstance(wanted, AllTasks) else _of_filter(wanted)
    if permission.own_only:
        # An API key has no user (NULL), and no creator matches NULL.
        conditions.append(("w.created_by_user_id = %s", permission.caller.user_id))
    return [text for text, _ in conditions], [value for _, value in conditions]


def _of_filter(wanted: TaskFilter) -> list[tuple[str, object]]:
    conditions: list[tuple[str, object]] = [
        ("t.id = ANY (%s)", None if wanted.task_ids is None else list(wanted.task_ids)),
        ("w.id = ANY (%s)", None if wanted.workspace_ids is None else list(wanted.workspace_ids)),
        ("w.created_by_user_id = %s", wanted.created_by_user_id),
        ("t.submitted_by = %s", wanted.submitted_by),
        ("t.created_at < %s", wanted.submitted_before),
        ("t.metadata @> %s", None if wanted.metadata is None else json_value(wanted.metadata)),
    ]
    return [(condition, value) for condition, value in conditions if value is not None]
