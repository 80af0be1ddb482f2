"""What the use cases of webhooks need from the store."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.event import AuditEntry
from evershell.features.webhooks.rules import TaskScope, Webhook, WebhookDelivery


class WebhookStore(Protocol):
    """The webhooks. Every method raises UnavailableError if the database does not answer."""

    async def create_webhook(
        self,
        webhook: Webhook,
        limit: int,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        """Adds a webhook, with the audit entry and the idempotency key of the call.

        Every event whose transaction begins after this method has returned is delivered. A webhook
        of a task also gets the earlier events of the task, and replaces the task's webhook with the
        same name.

        Raises KeyTakenError, like Store.transition. Raises Failure too_many_webhooks if the
        organization, or the task, already has `limit` other webhooks. Raises Failure
        permission_denied if somebody else created the webhook to be replaced, and `webhook` is
        limited to what its creator may read.
        """

    async def list_webhooks(self, org_id: str, task: TaskScope | None = None) -> Sequence[Webhook]:
        """The webhooks of `task`; if `task` is None, the webhooks for the whole organization.

        The newest comes first. The name of `task` is ignored.
        """

    async def delete_webhook(
        self, permission: Permission, webhook_id: str, audit: AuditEntry | None = None
    ) -> Webhook | None:
        """Removes the webhook, and returns it as it was; None if there is none.

        Raises Failure permission_denied if somebody else created the webhook, and the permission
        covers only what the caller created. `rotate_secret` and `replay` do the same.
        """

    async def rotate_secret(
        self,
        permission: Permission,
        webhook_id: str,
        sealed_secret: bytes,
        now: datetime,
        expires_at: datetime,
        audit: AuditEntry | None = None,
    ) -> Webhook | None:
        """Replaces the secret; the replaced secret expires at `expires_at`.

        If the webhook already has a previous secret that is still valid at `now`, that secret stays
        valid, and the replaced secret does not. Returns None if there is no such webhook.
        """

    async def replay(
        self,
        permission: Permission,
        webhook_id: str,
        task_id: str | None,
        now: datetime,
        audit: AuditEntry | None = None,
    ) -> tuple[int, int] | None:
        """Makes up to 1,000 failed deliveries of the task, or of all tasks, due `now`.

        Enables the webhook. Returns how many deliveries it made due, and how many failed ones are
        left; None if there is no such webhook.
        """

    async def list_deliveries(self, workspace_id: str, task_id: str) -> Sequence[WebhookDelivery]:
        """Up to 100 deliveries of the task's events, the newest webhook first."""

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        """Stores the audit entry of a call that changed nothing."""
