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

    All calls except `list` and `deliveries` need the scope `webhooks:write`. With
    `workspace:read:own` alone, they change only webhooks that the caller created.
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

        Effect: from the answer on, every event of its types is sent to `url`, at least once, and
        for each task in the order of `seq`. The answer has the secret with which requests are
        signed; no other answer has it. If the caller has only workspace:read:own, only events of
        workspaces that the caller created are sent.

        Errors: too_many_webhooks if the organization has 20. idempotency_conflict if the key
        belongs to another request.

        Needs webhooks:write, and workspace:read or workspace:read:own.

        Args:
            url: Where events are sent: an https URL without user name, password and fragment. 1 to
                2,000 characters.
            event_types: The types of the events to send. At most 20.
            description: Human-readable. At most 200 characters.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the same user or
                API key with this key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            CreatedWebhook: The answer to `webhooks.create`.

        Raises:
            IdempotencyConflictError: The idempotency key belongs to another request of the caller,
                within the last 24 hours.
            TooManyWebhooksError: The organization, or the task, has as many webhooks as it may
                have.
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

        Effect: none. With workspace:read:own alone, the list has only the webhooks that the caller
        created.

        Needs workspace:read or workspace:read:own.

        Returns:
            At most 20.

        Raises:
            CallError: The call has failed.
        """
        return await self._caller._call(call("ListWebhooks", many("webhooks", Webhook)))

    async def delete(self, webhook_id: str) -> Webhook:
        """Deletes a webhook. The answer is the webhook as it was.

        Effect: nothing more is sent to it, except by attempts that have begun. Its deliveries are
        removed.

        Idempotency: a repeat answers webhook_not_found.

        Errors: webhook_not_found includes webhooks of another organization.

        Needs webhooks:write and workspace:read, or webhooks:write, workspace:read:own and to be the
        creator of the webhook.

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
        """Replaces the secret of a webhook. The answer has the new secret; no other answer has it.

        Effect: for 24 hours, requests are signed with the new secret and with the previous one.

        Idempotency: each call makes a new secret. While the previous secret still signs, a further
        call replaces only the newest secret, so a receiver that has the previous one loses no
        event.

        Errors: webhook_not_found includes webhooks of another organization.

        Needs webhooks:write and workspace:read, or webhooks:write, workspace:read:own and to be the
        creator of the webhook.

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
        """Sends again what could not be delivered to a webhook.

        Effect: its failed deliveries, or only the one of a task, are pending again, from the first
        event that was not delivered. A disabled webhook is enabled. A call replays at most 1,000
        deliveries; call again until `remaining` is 0.

        Idempotency: deliveries that have not failed do not change.

        Errors: webhook_not_found includes webhooks of another organization.

        Needs webhooks:write and workspace:read, or webhooks:write, workspace:read:own and to be the
        creator of the webhook.

        Args:
            webhook_id: The id of the webhook.
            task_id: Replays only the delivery of this task. If None, all failed deliveries.

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
        """Lists the deliveries of a task's events: one for each webhook that gets events of the
        task, the newest webhook first. A delivery is listed for 30 days after its last event.

        Errors: task_not_found includes tasks of another workspace.

        Needs workspace:read, or workspace:read:own and to be the creator of the workspace.

        Args:
            workspace_id: The id of the workspace.
            task_id: The id of the task.

        Returns:
            At most 100.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            TaskNotFoundError: The workspace has no such task, or the organization no such parent.
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
