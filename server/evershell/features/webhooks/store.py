"""The WebhookStore, on PostgreSQL."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.event import AuditEntry, EventType
from evershell.features.webhooks.rules import (
    DeliveryStatus,
    TaskScope,
    Webhook,
    WebhookDelivery,
    not_own,
)
from evershell.store.audit import store_audit_entry
from evershell.store.idempotency_keys import store_key
from evershell.store.pool import Connection, Pool, connected
from evershell.store.rows import Values, insert
from evershell.store.statements import statements

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
# A call replays at most this many deliveries.
_MAX_REPLAYED = 1_000

_LOOK_SECONDS, _MAX_LOOKS = 0.05, 100
SQL = statements("store", __package__, webhook=", ".join(COLUMNS), max_replayed=_MAX_REPLAYED)


class PostgresWebhooks:
    """Implements ports.WebhookStore."""

    def __init__(self, pool: Pool, created: Callable[[], None] = lambda: None) -> None:
        """`created` is called whenever a webhook has been created."""
        self._pool = pool.others
        self._lists = pool.lists
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
            named = {"org_id": webhook.org_id, "task_id": task_id, "name": name}
            lock = {"owner_id": task_id or webhook.org_id}
            await connection.execute(SQL.lock_creations, lock)
            if first_call is not None:
                # The key is stored before the limit is checked. If the call creates the last
                # webhook that the limit allows, a repeat must find the key and not fail.
                await store_key(connection, first_call)
            cursor = await connection.execute(SQL.count_webhooks, named)
            row = await cursor.fetchone()
            if row is None or row.number >= limit:
                owner = "Your organization" if task is None else f"Task {task.task_id}"
                raise errors.too_many_webhooks(webhook.org_id, limit, owner)
            if task is not None:
                named["workspace_id"] = task.workspace_id
                await connection.execute(SQL.lock_workspace, named)
                found = await connection.execute(SQL.find_task, named)
                if await found.fetchone() is None:
                    raise errors.task_not_found(task.workspace_id, task.task_id)
                replaced = await connection.execute(SQL.replace_webhook, named)
                _check_replaced(webhook, await replaced.fetchone())
            await connection.execute(insert("webhooks", COLUMNS), _values(webhook))
            if task is not None:
                await _record_earlier_events(connection, webhook, task)
            await store_audit_entry(connection, audit)
        self._created()
        if task is None:
            await self._await_transactions()

    async def _await_transactions(self) -> None:
        """Waits until all transactions that are running now have ended, but at most about 5 s."""
        async with connected(self._pool) as connection:
            last: Any = await (await connection.execute(SQL.last_transaction)).fetchone()
        for _ in range(_MAX_LOOKS):
            async with connected(self._pool) as connection:
                cursor = await connection.execute(SQL.have_ended, {"last_id": last.id})
                row: Any = await cursor.fetchone()
            if row.have_ended:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def list_webhooks(self, org_id: str, task: TaskScope | None = None) -> Sequence[Webhook]:
        query, parameters = SQL.list_of_org, {"org_id": org_id}
        if task is not None:
            query = SQL.list_of_task
            parameters |= {"workspace_id": task.workspace_id, "task_id": task.task_id}
        async with connected(self._lists) as connection:
            cursor = await connection.execute(query, parameters, binary=True)
            return [webhook_of(row) for row in await cursor.fetchall()]

    async def delete_webhook(
        self, permission: Permission, webhook_id: str, audit: AuditEntry | None = None
    ) -> Webhook | None:
        parameters = {"webhook_id": webhook_id, "org_id": permission.caller.org_id}
        return await self._change(SQL.delete_webhook, parameters, permission, audit)

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
        return await self._change(SQL.rotate_secret, parameters, permission, audit)

    async def replay(
        self,
        permission: Permission,
        webhook_id: str,
        task_id: str | None,
        now: datetime,
        audit: AuditEntry | None = None,
    ) -> tuple[int, int] | None:
        async with connected(self._pool) as connection, connection.transaction():
            parameters = {
                "webhook_id": webhook_id,
                "org_id": permission.caller.org_id,
                "task_id": task_id,
                "now": now,
            }
            enabled = await (await connection.execute(SQL.enable_webhook, parameters)).fetchone()
            if enabled is None:
                return None
            if not permission.includes(enabled.created_by):
                raise not_own(webhook_id)
            replayed = (await connection.execute(SQL.replay, parameters)).rowcount
            left = await (await connection.execute(SQL.count_failed, parameters)).fetchone()
            await store_audit_entry(connection, audit)
        return replayed, 0 if left is None else left.number

    async def list_deliveries(self, workspace_id: str, task_id: str) -> Sequence[WebhookDelivery]:
        async with connected(self._lists) as connection:
            named = {"workspace_id": workspace_id, "task_id": task_id}
            cursor = await connection.execute(SQL.list_deliveries, named, binary=True)
            return [_delivery_of(row) for row in await cursor.fetchall()]

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool) as connection:
            await store_audit_entry(connection, audit)

    async def _change(
        self, query: str, parameters: Any, permission: Permission, audit: AuditEntry | None
    ) -> Webhook | None:
        """Makes the change.

        Raises Failure permission_denied, which undoes the change, if the permission does not
        include the webhook.
        """
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
    """Checks that the caller may replace the webhook.

    Raises Failure permission_denied, which undoes the replacement.
    """
    is_limited = webhook.creator_user_id is not None
    if replaced is not None and is_limited and replaced.created_by != webhook.created_by:
        raise not_own(replaced.id)


async def _record_earlier_events(connection: Connection, webhook: Webhook, task: TaskScope) -> None:
    parameters = {
        "webhook_id": webhook.id,
        "org_id": webhook.org_id,
        "receiver": webhook.receiver,
        "created_at": webhook.created_at,
        "workspace_id": task.workspace_id,
        "task_id": task.task_id,
        "event_types": [str(each) for each in webhook.event_types],
    }
    await connection.execute(SQL.record_earlier_events, parameters)


def _values(webhook: Webhook) -> Values:
    task = webhook.task
    scope = {
        "workspace_id": task and task.workspace_id,
        "task_id": task and task.task_id,
        "name": task and task.name,
        "event_types": [str(each) for each in webhook.event_types],
    }
    return [scope[name] if name in scope else getattr(webhook, name) for name in COLUMNS]


# The fields of a Webhook that are stored unchanged.
_PLAIN_FIELDS = [
    field.name for field in fields(Webhook) if field.name not in ("task", "event_types")
]


def webhook_of(row: Any, prefix: str = "") -> Webhook:
    """The webhook of a row with COLUMNS. `prefix` comes before the name of each column."""
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
