"""The WebhookStore of the core, on PostgreSQL."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.event import AuditEntry, EventType
from evershell.core.webhook import (
    DeliveryStatus,
    PayloadForm,
    TaskScope,
    Webhook,
    WebhookDelivery,
    not_own,
)
from evershell.store.audit import store_audit_entry
from evershell.store.connections import Connection, Pool, connected
from evershell.store.idempotency_keys import store_key
from evershell.store.rows import Values, insert

COLUMNS = (
    "id",
    "org_id",
    "url",
    "receiver",
    "event_types",
    "description",
    "created_by",
    "created_at",
    "creator_user_id",
    "workspace_id",
    "task_id",
    "name",
    "payload_form",
    "sealed_headers",
    "sealed_secret",
    "sealed_previous_secret",
    "previous_secret_expires_at",
    "disabled_at",
)
_WEBHOOK = ", ".join(COLUMNS)
# A call replays at most this many deliveries.
_MAX_REPLAYED = 1_000

_INSERT = insert("webhooks", COLUMNS)
# Creations of one organization or task come one by one, so that none exceeds the limit.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))"
_COUNT = (
    "SELECT count(*) AS number FROM webhooks "
    "WHERE org_id = %s AND task_id IS NOT DISTINCT FROM %s AND (name = %s) IS NOT TRUE"
)
# The events of the task come one by one under this lock, so none is missed between the last
# statement of the creation and the first trigger that sees the webhook.
_LOCK_WORKSPACE = "SELECT FROM workspaces WHERE id = %s FOR UPDATE"
# A task of a workspace that is deleted is removed under this lock. An old task is removed without
# it, so this waits for such a removal, or makes it wait.
_FIND_TASK = "SELECT FROM tasks WHERE id = %s AND workspace_id = %s FOR KEY SHARE"
# A transaction that began before a webhook was committed may have written an event without seeing
# the webhook. The creation is answered after the end of such transactions, but does not wait long
# for others, such as a migration.
_LAST_TRANSACTION = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS id"
_HAVE_ENDED = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8 AS have_ended"
_LOOK_SECONDS, _MAX_LOOKS = 0.05, 100
_REPLACE = "DELETE FROM webhooks WHERE task_id = %s AND name = %s RETURNING id, created_by"
_EARLIER_EVENTS = (
    "INSERT INTO webhook_deliveries (workspace_id, task_id, webhook_id, org_id, receiver, "
    "delivered_seq, last_seq, due_at, pending_since) "
    "SELECT workspace_id, task_id, %s, %s, %s, min(seq) - 1, max(seq), %s, %s FROM events "
    "WHERE workspace_id = %s AND task_id = %s AND type = ANY(%s) GROUP BY workspace_id, task_id"
)
_LIST = f"SELECT {_WEBHOOK} FROM webhooks WHERE org_id = %s AND task_id IS NULL ORDER BY id DESC"
_LIST_OF_TASK = (
    f"SELECT {_WEBHOOK} FROM webhooks WHERE org_id = %s AND workspace_id = %s AND task_id = %s "
    "ORDER BY id DESC"
)
_DELETE = f"DELETE FROM webhooks WHERE id = %s AND org_id = %s RETURNING {_WEBHOOK}"
_KEEPS_PREVIOUS = "previous_secret_expires_at > %(now)s"
_ROTATE = (
    "UPDATE webhooks SET "
    f"sealed_previous_secret = CASE WHEN {_KEEPS_PREVIOUS} "
    "THEN sealed_previous_secret ELSE sealed_secret END, "
    f"previous_secret_expires_at = CASE WHEN {_KEEPS_PREVIOUS} "
    "THEN previous_secret_expires_at ELSE %(expires_at)s END, "
    "sealed_secret = %(sealed_secret)s "
    f"WHERE id = %(webhook_id)s AND org_id = %(org_id)s RETURNING {_WEBHOOK}"
)
_ENABLE = (
    "UPDATE webhooks SET disabled_at = NULL WHERE id = %s AND org_id = %s RETURNING created_by"
)
# Rows that a worker or an event has locked are left to the next call: a call that waits could take
# part in a deadlock.
_REPLAY = (
    "UPDATE webhook_deliveries SET due_at = %s, pending_since = %s, attempts = 0, failed = false, "
    "settled_at = NULL WHERE (workspace_id, task_id, webhook_id) IN ("
    "SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries "
    "WHERE webhook_id = %s AND failed AND task_id = coalesce(%s, task_id) "
    "ORDER BY settled_at LIMIT %s FOR UPDATE SKIP LOCKED)"
)
_COUNT_FAILED = (
    "SELECT count(*) AS number FROM webhook_deliveries "
    "WHERE webhook_id = %s AND failed AND task_id = coalesce(%s, task_id)"
)
_DELIVERIES = (
    "SELECT d.* FROM webhook_deliveries d JOIN webhooks h ON h.id = d.webhook_id "
    "WHERE d.workspace_id = %s AND d.task_id = %s ORDER BY d.webhook_id DESC LIMIT 100"
)


class PostgresWebhooks:
    """Implements core.ports.WebhookStore."""

    def __init__(self, pool: Pool, created: Callable[[], None] = lambda: None) -> None:
        """`created` is called after a webhook was created."""
        self._pool = pool
        self._created = created

    async def create_webhook(
        self,
        webhook: Webhook,
        limit: int,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        task = webhook.task
        task_id, name = (task.task_id, task.name) if task is not None else (None, None)
        async with connected(self._pool) as connection, connection.transaction():
            await connection.execute(_LOCK, (task_id or webhook.org_id,))
            if first_call is not None:
                # Before the limit is checked: the repeat of the last call that it allows is no
                # further one.
                await store_key(connection, first_call)
            cursor = await connection.execute(_COUNT, (webhook.org_id, task_id, name))
            row = await cursor.fetchone()
            if row is None or row.number >= limit:
                owner = "Your organization" if task is None else f"Task {task.task_id}"
                raise errors.too_many_webhooks(webhook.org_id, limit, owner)
            if task is not None:
                await connection.execute(_LOCK_WORKSPACE, (task.workspace_id,))
                found = await connection.execute(_FIND_TASK, (task_id, task.workspace_id))
                if await found.fetchone() is None:
                    raise errors.task_not_found(task.workspace_id, task.task_id)
                replaced = await connection.execute(_REPLACE, (task_id, name))
                _check_replaced(webhook, await replaced.fetchone())
            await connection.execute(_INSERT, _values(webhook))
            if task is not None:
                await _record_earlier_events(connection, webhook, task)
            await store_audit_entry(connection, audit)
        self._created()
        if task is None:
            await self._await_transactions()

    async def _await_transactions(self) -> None:
        """Waits until the transactions that are running have ended, for 5 s at most."""
        async with connected(self._pool) as connection:
            last: Any = await (await connection.execute(_LAST_TRANSACTION)).fetchone()
        for _ in range(_MAX_LOOKS):
            async with connected(self._pool) as connection:
                row: Any = await (await connection.execute(_HAVE_ENDED, (last.id,))).fetchone()
            if row.have_ended:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def list_webhooks(self, org_id: str, task: TaskScope | None = None) -> Sequence[Webhook]:
        if task is None:
            query, parameters = _LIST, [org_id]
        else:
            query, parameters = _LIST_OF_TASK, [org_id, task.workspace_id, task.task_id]
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, binary=True)
            return [webhook_of(row) for row in await cursor.fetchall()]

    async def delete_webhook(
        self, permission: Permission, webhook_id: str, audit: AuditEntry | None = None
    ) -> Webhook | None:
        parameters = (webhook_id, permission.caller.org_id)
        return await self._change(_DELETE, parameters, permission, audit)

    async def rotate_secret(
        self,
        permission: Permission,
        webhook_id: str,
        sealed_secret: bytes,
        now: datetime,
        expires_at: datetime,
        audit: AuditEntry | None = None,
    ) -> Webhook | None:
        parameters = {
            "org_id": permission.caller.org_id,
            "webhook_id": webhook_id,
            "sealed_secret": sealed_secret,
            "now": now,
            "expires_at": expires_at,
        }
        return await self._change(_ROTATE, parameters, permission, audit)

    async def replay(
        self,
        permission: Permission,
        webhook_id: str,
        task_id: str | None,
        now: datetime,
        audit: AuditEntry | None = None,
    ) -> tuple[int, int] | None:
        async with connected(self._pool) as connection, connection.transaction():
            parameters: Any = (webhook_id, permission.caller.org_id)
            enabled = await (await connection.execute(_ENABLE, parameters)).fetchone()
            if enabled is None:
                return None
            if not permission.includes(enabled.created_by):
                raise not_own(webhook_id)
            parameters = (now, now, webhook_id, task_id, _MAX_REPLAYED)
            replayed = (await connection.execute(_REPLAY, parameters)).rowcount
            left = await (await connection.execute(_COUNT_FAILED, (webhook_id, task_id))).fetchone()
            await store_audit_entry(connection, audit)
        return replayed, 0 if left is None else left.number

    async def list_deliveries(self, workspace_id: str, task_id: str) -> Sequence[WebhookDelivery]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_DELIVERIES, (workspace_id, task_id), binary=True)
            return [_delivery_of(row) for row in await cursor.fetchall()]

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool) as connection:
            await store_audit_entry(connection, audit)

    async def _change(
        self, query: str, parameters: Any, permission: Permission, audit: AuditEntry | None
    ) -> Webhook | None:
        """Commits nothing if the permission does not include the webhook."""
        async with connected(self._pool) as connection, connection.transaction():
            cursor = await connection.execute(query, parameters, binary=True)
            row = await cursor.fetchone()
            if row is None:
                return None
            if not permission.includes(row.created_by):
                raise not_own(row.id)
            await store_audit_entry(connection, audit)
        return webhook_of(row)


def _check_replaced(webhook: Webhook, replaced: Any) -> None:
    """Raises Failure permission_denied, which undoes the replacement."""
    is_limited = webhook.creator_user_id is not None
    if replaced is not None and is_limited and replaced.created_by != webhook.created_by:
        raise not_own(replaced.id)


async def _record_earlier_events(connection: Connection, webhook: Webhook, task: TaskScope) -> None:
    await connection.execute(
        _EARLIER_EVENTS,
        (
            webhook.id,
            webhook.org_id,
            webhook.receiver,
            webhook.created_at,
            webhook.created_at,
            task.workspace_id,
            task.task_id,
            [str(each) for each in webhook.event_types],
        ),
    )


def _values(webhook: Webhook) -> Values:
    task = webhook.task
    scope = {
        "workspace_id": task and task.workspace_id,
        "task_id": task and task.task_id,
        "name": task and task.name,
        "event_types": [str(each) for each in webhook.event_types],
        "payload_form": str(webhook.payload_form),
    }
    return [scope[name] if name in scope else getattr(webhook, name) for name in COLUMNS]


# The fields of a Webhook that are columns.
_PLAIN_FIELDS = [
    field.name
    for field in fields(Webhook)
    if field.name not in ("task", "event_types", "payload_form")
]


def webhook_of(row: Any, prefix: str = "") -> Webhook:
    """The webhook of a row of COLUMNS, whose names have the prefix."""
    task_id = getattr(row, f"{prefix}task_id")
    task = None
    if task_id is not None:
        task = TaskScope(
            workspace_id=getattr(row, f"{prefix}workspace_id"),
            task_id=task_id,
            name=getattr(row, f"{prefix}name"),
        )
    return Webhook(
        **{name: getattr(row, prefix + name) for name in _PLAIN_FIELDS},
        task=task,
        event_types=[EventType(each) for each in getattr(row, f"{prefix}event_types")],
        payload_form=PayloadForm(getattr(row, f"{prefix}payload_form")),
    )


def _delivery_of(row: Any) -> WebhookDelivery:
    pending = row.due_at is not None
    settled = DeliveryStatus.FAILED if row.failed else DeliveryStatus.DELIVERED
    return WebhookDelivery(
        webhook_id=row.webhook_id,
        workspace_id=row.workspace_id,
        task_id=row.task_id,
        status=DeliveryStatus.PENDING if pending else settled,
        delivered_seq=row.delivered_seq,
        last_seq=row.last_seq,
        attempts=row.attempts,
        last_error=row.last_error,
        last_attempt_at=row.last_attempt_at,
        next_attempt_at=row.due_at,
    )
