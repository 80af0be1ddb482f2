"""A fake store of webhooks, for tests without PostgreSQL."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import FirstCall, KeyTakenError
from evershell.core.event import AuditEntry
from evershell.features.webhooks.rules import TaskScope, Webhook, WebhookDelivery, not_own


class FakeWebhookStore:
    """Implements WebhookStore of evershell.features.webhooks in memory. Never adds deliveries."""

    def __init__(self) -> None:
        self.webhooks: dict[str, Webhook] = {}
        self.audit: list[AuditEntry | None] = []
        self.first_calls: dict[str, FirstCall] = {}
        self.deliveries: list[WebhookDelivery] = []
        # The number of failed deliveries that can be replayed.
        self.failed = 0

    async def create_webhook(
        self,
        webhook: Webhook,
        limit: int,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        if first_call is not None and first_call.key in self.first_calls:
            raise KeyTakenError
        for other in await self.list_webhooks(webhook.org_id, webhook.task):
            if webhook.task is not None and other.task == webhook.task:
                if webhook.creator_user_id is not None and other.created_by != webhook.created_by:
                    raise not_own(other.id)
                del self.webhooks[other.id]
        if len(await self.list_webhooks(webhook.org_id, webhook.task)) >= limit:
            raise errors.too_many_webhooks(webhook.org_id, limit, "Your organization")
        if first_call is not None:
            self.first_calls[first_call.key] = first_call
        self.webhooks[webhook.id] = webhook
        self.audit.append(audit)

    async def list_webhooks(self, org_id: str, task: TaskScope | None = None) -> Sequence[Webhook]:
        task_id = task and task.task_id
        listed = [
            each
            for each in self.webhooks.values()
            if each.org_id == org_id and (each.task and each.task.task_id) == task_id
        ]
        return sorted(listed, key=lambda each: each.id, reverse=True)

    async def delete_webhook(
        self, permission: Permission, webhook_id: str, audit: AuditEntry | None = None
    ) -> Webhook | None:
        deleted = self._find(permission, webhook_id, audit)
        if deleted is not None:
            del self.webhooks[webhook_id]
        return deleted

    async def rotate_secret(
        self,
        permission: Permission,
        webhook_id: str,
        sealed_secret: bytes,
        now: datetime,
        expires_at: datetime,
        audit: AuditEntry | None = None,
    ) -> Webhook | None:
        webhook = self._find(permission, webhook_id, audit)
        if webhook is None:
            return None
        kept_until = webhook.previous_secret_expires_at
        if kept_until is None or kept_until <= now:
            webhook = replace(
                webhook,
                sealed_previous_secret=webhook.sealed_secret,
                previous_secret_expires_at=expires_at,
            )
        self.webhooks[webhook_id] = rotated = replace(webhook, sealed_secret=sealed_secret)
        return rotated

    async def replay(
        self,
        permission: Permission,
        webhook_id: str,
        task_id: str | None,
        now: datetime,
        audit: AuditEntry | None = None,
    ) -> tuple[int, int] | None:
        if self._find(permission, webhook_id, audit) is None:
            return None
        replayed, self.failed = min(self.failed, 1_000), max(self.failed - 1_000, 0)
        return replayed, self.failed

    async def list_deliveries(self, workspace_id: str, task_id: str) -> Sequence[WebhookDelivery]:
        return self.deliveries

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        self.audit.append(audit)

    def _find(
        self, permission: Permission, webhook_id: str, audit: AuditEntry | None
    ) -> Webhook | None:
        webhook = self.webhooks.get(webhook_id)
        if webhook is None or webhook.org_id != permission.caller.org_id:
            return None
        if not permission.includes(webhook.created_by):
            raise not_own(webhook_id)
        self.audit.append(audit)
        return webhook
