"""Finds and cancels many tasks of an organization."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from evershell.core import deadline
from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry
from evershell.core.ports import UNDELIVERED, MatchedTask, MatchedTasks
from evershell.core.task import CancelIntent
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from evershell.store.cancellations import json_of, request_of
from evershell.store.connections import ANSWER_TIMEOUT_SECONDS, Pool, connected
from evershell.store.notifications import Publish
from evershell.store.rows import Values, json_value

_CANCEL = (
    "SELECT workspace_id, task_id, outcome = 'accepted' AS is_new, watched FROM cancel_tasks("
    "p_request => json_populate_record(NULL::cancellation_request, %s), "
    "p_task_ids => %s, p_wait => %s)"
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
    """Implements Store.match_tasks and Store.cancel_tasks."""

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
            rows = await (self._wait(parameters) if wait else self._execute(parameters))
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

    async def _wait(self, parameters: Values) -> Sequence[Any]:
        try:
            async with (
                asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)),
                self._waiting_connections,
            ):
                return await self._execute(parameters)
        except TimeoutError as error:
            raise UnavailableError("Another transaction has locked the workspace.") from error

    async def _execute(self, parameters: Values) -> Sequence[Any]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_CANCEL, parameters, prepare=True)
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
