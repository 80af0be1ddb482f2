"""Records cancellations. Those of concurrent callers share a statement."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from psycopg.types.json import Json, Jsonb

from evershell.core import deadline
from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, cancel_requested_payload
from evershell.core.ports import RecordedCancellation
from evershell.core.task import CancelIntent
from evershell.store.audit import audit_json
from evershell.store.connections import ANSWER_TIMEOUT_SECONDS, Pool, connected
from evershell.store.group_commit import GroupCommit
from evershell.store.notifications import Publish, is_watched
from evershell.store.rows import (
    Values,
    json_value,
    task_columns,
    task_of,
    workspace_columns,
    workspace_of,
)

_COLUMNS = (
    f"skipped, recorded, {workspace_columns('(w).')}, {task_columns('(t).')}, (w).watched_until"
)
# The name comes first, because pg_stat_activity shows 1,024 bytes of a statement.
_RECORD_ONE = (
    f"SELECT /* record_cancellation_or_skip */ {_COLUMNS} FROM record_cancellation_or_skip("
    "%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_RECORD_MANY = f"SELECT /* record_cancellations */ {_COLUMNS} FROM record_cancellations(%s)"

# Larger groups took longer for each request, smaller ones more CPU. With fewer statements at once,
# the call of one of four callers took longer, and with more, groups were smaller
# (docs/decisions/0014-group-commit.md has the figures).
_MAX_BATCH = 64
_AT_ONCE = 2


class _Request(NamedTuple):
    """The fields of a request in record_cancellations.sql."""

    org_id: str
    own_only: bool
    user_id: str | None
    workspace_id: str
    task_id: str | None
    requested_by: str
    credential_kind: str
    requested_at: datetime
    reason: str
    request_id: str
    force_at: datetime | None
    trace_id: str | None
    payload: Jsonb
    audit: Json | None


class Cancellations:
    """Implements Store.record_cancellation.

    A statement that several callers share waits for no lock of a workspace. If another transaction
    has locked the workspace of a request, the request is repeated alone and waits for the lock, so
    a slow transaction delays only the requests for its workspace.
    """

    def __init__(
        self,
        pool: Pool,
        publish: Publish,
        *,
        max_batch: int = _MAX_BATCH,
        at_once: int = _AT_ONCE,
    ) -> None:
        """Calls `publish` for each workspace whose task may have changed."""
        self._pool = pool
        self._publish = publish
        self._group = GroupCommit(self._commit, max_batch=max_batch, at_once=at_once)
        # One request for each locked workspace waits in the database, the others wait here in
        # order. All together use at most half of the connections.
        self._queues: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._waiting_connections = asyncio.Semaphore(max(1, pool.max_size // 2))

    async def record(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        """See Store.record_cancellation."""
        caller = permission.caller
        request = _Request(
            caller.org_id,
            permission.own_only,
            caller.user_id,
            workspace_id,
            task_id,
            intent.requested_by,
            str(intent.credential_kind),
            intent.requested_at,
            intent.reason,
            intent.request_id,
            intent.force_at,
            trace_id or None,
            json_value(cancel_requested_payload(intent)),
            None if audit is None else Json(audit_json(audit)),
        )
        found = await self._group(request)
        return await self._record_after_lock(request) if found is None else found

    async def drained(self) -> None:
        """Returns when no shared statement is in flight."""
        await self._group.drained()

    async def _record_after_lock(self, request: _Request) -> RecordedCancellation:
        queue = self._queues.setdefault(request.workspace_id, asyncio.Lock())
        try:
            async with (
                asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)),
                queue,
                self._waiting_connections,
            ):
                (found,) = await self._execute([request], _RECORD_ONE, _parameters(request, True))
        except TimeoutError as error:
            message = f"Another transaction has locked workspace {request.workspace_id}."
            raise UnavailableError(message) from error
        assert found is not None
        return found

    async def _commit(self, requests: Sequence[_Request]) -> Sequence[RecordedCancellation | None]:
        if len(requests) == 1:
            return await self._execute(requests, _RECORD_ONE, _parameters(requests[0], False))
        return await self._execute(requests, _RECORD_MANY, (Json(requests, dumps=_dumps),))

    async def _execute(
        self, requests: Sequence[_Request], query: str, parameters: Values
    ) -> Sequence[RecordedCancellation | None]:
        """The results in the order of the requests. None for a workspace that was locked."""
        try:
            async with connected(self._pool) as connection:
                cursor = await connection.execute(query, parameters, prepare=True, binary=True)
                rows = await cursor.fetchall()
        except asyncio.CancelledError:
            # The intents may have been committed before the cancellation.
            for request in requests:
                self._publish(request.workspace_id, watched=True, reconcile=False)
            raise
        results = [_result(row) for row in rows]
        for request, row, result in zip(requests, rows, results, strict=True):
            if result is not None and (
                result.recorded or _may_have_changed_force_at(result, request)
            ):
                watched = is_watched(row.watched_until, request.requested_at)
                self._publish(request.workspace_id, watched=watched, reconcile=False)
        return results


def _parameters(request: _Request, wait: bool) -> Values:
    return (*request[:-1], wait, request.audit)


def _result(row: Any) -> RecordedCancellation | None:
    if row.skipped:
        return None
    return RecordedCancellation(
        workspace=None if row.id is None else workspace_of(row),
        task=task_of(row),
        recorded=row.recorded,
    )


def _may_have_changed_force_at(found: RecordedCancellation, request: _Request) -> bool:
    """Whether the call may have moved the force deadline of an intent that was recorded before.

    Also true if the deadline was the same before. It is then published without need.
    """
    if request.force_at is None or found.task is None or found.task.cancel is None:
        return False
    return found.task.cancel.force_at == request.force_at


def _dumps(requests: Sequence[_Request]) -> str:
    return json.dumps(
        [request._asdict() for request in requests], ensure_ascii=False, default=_plain
    )


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value.obj
