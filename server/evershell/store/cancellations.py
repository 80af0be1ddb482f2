"""Records cancellations. Concurrent callers share a statement."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from psycopg.types.json import Json

from evershell.core import deadline
from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, cancel_requested_payload
from evershell.core.ports import RecordedCancellation
from evershell.core.task import CancelIntent
from evershell.store.audit import audit_json
from evershell.store.batch import Batch
from evershell.store.part import Part
from evershell.store.pool import ANSWER_TIMEOUT_SECONDS, connected
from evershell.store.rows import dump_json, task_of, workspace_of
from evershell.store.statements import statements
from evershell.store.watched_workspaces import is_watched

SQL = statements("cancellations")

# The fields of `cancellation_request`, by name.
Request = dict[str, Any]

# The most requests in a statement. Larger groups make each request slower, and smaller groups cost
# more CPU (docs/decisions/0014-group-commit.md).
_MAX_BATCH = 64
# The most statements in flight. With one, the calls of four concurrent callers took longer. With
# more than two, the groups became smaller.
_AT_ONCE = 2


class Cancellations(Part):
    """Implements core.ports.Cancellations.record_cancellation.

    A statement that several callers share does not wait for the locks of workspaces. If another
    transaction has locked the workspace of a request, the request is repeated alone and waits for
    the lock. A slow transaction therefore delays only the requests for its workspace.
    """

    @cached_property
    def _cancellation_group(self) -> Batch[Request, RecordedCancellation | None]:
        return Batch(self._record_all, at_most=_MAX_BATCH, at_once=_AT_ONCE)

    @cached_property
    def _lock_queues(self) -> WeakValueDictionary[str, asyncio.Lock]:
        """The queues of requests for locked workspaces, by workspace id.

        The first request of a queue waits in the database, and the others wait here.
        """
        return WeakValueDictionary()

    async def record_cancellation(
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
        recorded = await self._cancellation_group(request)
        return await self._record_after_lock(request) if recorded is None else recorded

    async def _record_after_lock(self, request: Request) -> RecordedCancellation:
        workspace_id = request["workspace_id"]
        queue = self._lock_queues.setdefault(workspace_id, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)), queue:
                (recorded,) = await self._record_all([request], wait=True)
        except TimeoutError as error:
            message = f"Another transaction has locked workspace {workspace_id}."
            raise UnavailableError(message) from error
        assert recorded is not None
        return recorded

    async def _record_all(
        self, requests: Sequence[Request], *, wait: bool = False
    ) -> Sequence[RecordedCancellation | None]:
        """The results, in the order of the requests. None if the request's workspace was locked."""
        try:
            async with connected(self._pool.locks if wait else self._pool) as connection:
                parameters = {"requests": json_of(requests), "wait": wait}
                cursor = await connection.execute(
                    SQL.record_cancellations, parameters, prepare=True, binary=True
                )
                rows = await cursor.fetchall()
        except asyncio.CancelledError:
            # The intents may have been committed before this asyncio task was cancelled.
            for request in requests:
                self._publish(request["workspace_id"], watched=True, reconcile=False)
            raise
        results = [None if row.outcome is None else result_of(row) for row in rows]
        for request, row, result in zip(requests, rows, results, strict=True):
            if result is not None and (
                result.recorded or _may_have_changed_force_at(result, request)
            ):
                watched = is_watched(row.watched_until, request["requested_at"])
                self._publish(request["workspace_id"], watched=watched, reconcile=False)
        return results


def request_of(
    permission: Permission, intent: CancelIntent, trace_id: str, audit: AuditEntry | None
) -> Request:
    """The fields of `cancellation_request` (a type in the migrations) that do not name the task."""
    return {
        "org_id": permission.caller.org_id,
        "own_only": permission.own_only,
        "user_id": permission.caller.user_id,
        "requested_by": intent.requested_by,
        "credential_kind": intent.credential_kind,
        "requested_at": intent.requested_at,
        "reason": intent.reason,
        "request_id": intent.request_id,
        "force_at": intent.force_at,
        "force_requested_by": intent.force_requested_by,
        "trace_id": trace_id or None,
        "payload": cancel_requested_payload(intent),
        "audit": None if audit is None else audit_json(audit),
        # The requests of the previous version do not have it (migrations/0006_log_readers.sql).
        "takes_position": True,
    }


def json_of(request: Request | Sequence[Request]) -> Json:
    """The SQL parameter for one or several requests."""
    return Json(request, dumps=dump_json)


def result_of(row: Any) -> RecordedCancellation:
    """The result in a row of `record_cancellations`."""
    workspace = None if row.id is None else workspace_of(row)
    return RecordedCancellation(outcome=row.outcome, workspace=workspace, task=task_of(row))


def _may_have_changed_force_at(recorded: RecordedCancellation, request: Request) -> bool:
    """Whether the call may have moved the force deadline of an intent that was recorded earlier.

    Also true if the deadline was the same before. A change is then published needlessly.
    """
    force_at: datetime | None = request["force_at"]
    if force_at is None or recorded.task is None or recorded.task.cancel is None:
        return False
    return recorded.task.cancel.force_at == force_at
