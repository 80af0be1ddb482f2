"""The calls about webhooks."""

# Written by `make gen` from protos/. Do not edit.

from collections.abc import Iterable

from evershell.client._async.caller import AsyncCaller
from evershell.client._calls import (
    call,
    idempotent,
    many,
    names,
    only,
    optional,
    with_id,
)
from evershell.client.events import EventType
from evershell.client.webhooks import (
    CreatedWebhook,
    ReplayResult,
    RotatedSecret,
    Webhook,
    WebhookDelivery,
)


class AsyncWebhooks:
    """The webhooks of the caller's organization: `client.webhooks`.

    All calls except `list` and `deliveries` need the scope `webhooks:write`. With only
    `workspace:read:own`, they change only webhooks that the caller created.
    """

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller

    async def create(
        self,
        url: str,
        event_types: Iterable[EventType | str],
        *,
        description: str = "",
        idempotency_key: str | None = None,
    ) -> CreatedWebhook:
        """Creates a webhook: an address to which the events of the caller's organization are sent.

        Effect: from the answer on, every event of the types in `event_types` is sent to `url` at
        least once. The events of each task are sent in the order of `seq`. The answer contains the
        secret that signs the requests; no later answer contains it. If the caller has only
        workspace:read:own, only events of workspaces that the caller created are sent.

        Errors: too_many_webhooks if the organization already has 20 webhooks. idempotency_conflict
        if another request has already used the key.

        Needs webhooks:write, and workspace:read or workspace:read:own.

        Args:
            url: Where events are sent: an https URL without a user name, password or fragment. 1 to
                2,000 characters.
            event_types: The types of the events to send. At most 20.
            description: Human-readable. At most 200 characters.
            idempotency_key: 1 to 255 printable ASCII characters. For 24 hours, a call of the same
                user or API key with this key and the same request has no effect and gets the first
                answer. None for a new key: then only the repeats of this call share it.

        Returns:
            CreatedWebhook: The answer to `webhooks.create`.

        Raises:
            IdempotencyConflictError: The caller has already used the idempotency key for another
                request within the last 24 hours.
            TooManyWebhooksError: The organization or the task already has the maximum number of
                webhooks.
            CallError: Any other failure.
        """
        return await self._caller._call(
            call(
                "CreateWebhook",
                with_id(CreatedWebhook),
                idempotent(idempotency_key),
                url=url,
                event_types=names("event_types", event_types, EventType),
                description=description,
            )
        )

    async def list(self) -> tuple[Webhook, ...]:
        """Lists the webhooks of the caller's organization, newest first.

        Effect: none. If the caller has only workspace:read:own, the list has only the webhooks that
        the caller created.

        Needs workspace:read or workspace:read:own.

        Returns:
            At most 20.

        Raises:
            CallError: The call has failed.
        """
        return await self._caller._call(call("ListWebhooks", many("webhooks", Webhook)))

    async def delete(self, webhook_id: str) -> Webhook:
        """Deletes a webhook. The answer is the webhook as it was.

        Effect: no more events are sent to the webhook, except by attempts that have already begun.
        Its deliveries are removed.

        Idempotency: a repeated call fails with webhook_not_found.

        Errors: webhook_not_found if the webhook does not exist or belongs to another organization.

        Needs webhooks:write and workspace:read. If the caller created the webhook,
        workspace:read:own is enough in place of workspace:read.

        Args:
            webhook_id: The id of the webhook.

        Returns:
            Webhook: An address to which the events of an organization are sent.

        Raises:
            WebhookNotFoundError: The caller's organization has no such webhook.
            CallError: Any other failure.
        """
        return await self._caller._call(call("DeleteWebhook", only(Webhook), webhook_id=webhook_id))

    async def rotate(self, webhook_id: str) -> RotatedSecret:
        """Replaces the secret of a webhook.

        The answer contains the new secret; no later answer contains it.

        Effect: for 24 hours, requests are signed with the new secret and with the previous one.

        Idempotency: each call makes a new secret. While the previous secret still signs, a further
        call replaces only the newest secret, so a receiver that still has the previous secret does
        not lose events.

        Errors: webhook_not_found if the webhook does not exist or belongs to another organization.

        Needs webhooks:write and workspace:read. If the caller created the webhook,
        workspace:read:own is enough in place of workspace:read.

        Args:
            webhook_id: The id of the webhook.

        Returns:
            RotatedSecret: The answer to `webhooks.rotate`.

        Raises:
            WebhookNotFoundError: The caller's organization has no such webhook.
            CallError: Any other failure.
        """
        return await self._caller._call(
            call("RotateWebhookSecret", with_id(RotatedSecret), webhook_id=webhook_id)
        )

    async def replay(self, webhook_id: str, *, task_id: str | None = None) -> ReplayResult:
        """Resends the events that could not be delivered to a webhook.

        Effect: the failed deliveries of the webhook, or only the delivery of `task_id`, become
        pending again. Each continues with the first event that was not delivered. A disabled
        webhook is enabled. A call replays at most 1,000 deliveries; call again until `remaining` is
        0.

        Idempotency: deliveries that have not failed do not change.

        Errors: webhook_not_found if the webhook does not exist or belongs to another organization.

        Needs webhooks:write and workspace:read. If the caller created the webhook,
        workspace:read:own is enough in place of workspace:read.

        Args:
            webhook_id: The id of the webhook.
            task_id: Replays only the delivery of this task. If None, replays all failed deliveries.

        Returns:
            ReplayResult: The answer to `webhooks.replay`.

        Raises:
            WebhookNotFoundError: The caller's organization has no such webhook.
            CallError: Any other failure.
        """
        return await self._caller._call(
            call(
                "ReplayWebhook",
                with_id(ReplayResult),
                webhook_id=webhook_id,
                task_id=optional("task_id", task_id),
            )
        )

    async def deliveries(self, workspace_id: str, task_id: str) -> tuple[WebhookDelivery, ...]:
        """Lists the deliveries of a task's events: one delivery for each webhook that gets events
        of the task, newest webhook first. A delivery is listed for 30 days after its last event.

        Errors: task_not_found if the task does not exist or belongs to another workspace.

        Needs workspace:read, or workspace:read:own if the caller created the workspace.

        Args:
            workspace_id: The id of the workspace.
            task_id: The id of the task.

        Returns:
            At most 100.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            TaskNotFoundError: The workspace has no such task, or the organization has no such
                parent task.
            CallError: Any other failure.
        """
        return await self._caller._call(
            call(
                "ListWebhookDeliveries",
                many("deliveries", WebhookDelivery),
                workspace_id=workspace_id,
                task_id=task_id,
            )
        )
