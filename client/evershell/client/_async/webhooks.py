"""The calls about webhooks."""

from collections.abc import Iterable

from evershell.workspace.v1 import event_pb2

from evershell.client._async.caller import AsyncCaller
from evershell.client._calls import call, idempotent, invalid, many, only, optional, with_id
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
        """Creates a webhook: from the answer on, it gets every event of these types.

        Args:
            url: Where events are sent: https, without user name, password and fragment.
            event_types: The types of the events to send.
            description: Human-readable; at most 200 characters.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the same user or
                API key with this key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The webhook, and the secret that signs its requests. The secret is empty if an earlier
            call, or an earlier attempt of this one, has created the webhook: use `rotate`.

        Raises:
            TooManyWebhooksError: The organization has as many as it may have.
            IdempotencyConflictError: The key was used for another request.
            CallError: Any other failure.
        """
        names = [str(each) for each in event_types]
        for name in names:
            if name not in event_pb2.EventType.Type.DESCRIPTOR.values_by_name:
                raise invalid("event_types", f"{name!r} is not a type of events")
        return await self._caller._call(
            call(
                "CreateWebhook",
                with_id(CreatedWebhook),
                idempotent(idempotency_key),
                url=url,
                event_types=names,
                description=description,
            )
        )

    async def list(self) -> tuple[Webhook, ...]:
        """Lists the webhooks of the caller's organization, newest first.

        Returns:
            The webhooks, without their secrets.

        Raises:
            CallError: The call has failed.
        """
        return await self._caller._call(call("ListWebhooks", many("webhooks", Webhook)))

    async def delete(self, webhook_id: str) -> Webhook:
        """Deletes a webhook. Nothing more is sent to it.

        Args:
            webhook_id: The webhook.

        Returns:
            The webhook as it was.

        Raises:
            WebhookNotFoundError: There is no such webhook.
            CallError: Any other failure.
        """
        return await self._caller._call(call("DeleteWebhook", only(Webhook), webhook_id=webhook_id))

    async def rotate(self, webhook_id: str) -> RotatedSecret:
        """Replaces the secret of a webhook. For 24 hours, the previous one signs as well.

        Args:
            webhook_id: The webhook.

        Returns:
            The webhook, and the new secret.

        Raises:
            WebhookNotFoundError: There is no such webhook.
            CallError: Any other failure.
        """
        return await self._caller._call(
            call("RotateWebhookSecret", with_id(RotatedSecret), webhook_id=webhook_id)
        )

    async def replay(self, webhook_id: str, *, task_id: str | None = None) -> ReplayResult:
        """Sends again what could not be delivered, from the first event that was not.

        At most 1,000 deliveries, the oldest first: call again until `remaining` is 0. A webhook
        that was disabled is enabled.

        Args:
            webhook_id: The webhook.
            task_id: Only the delivery of this task. None for all that have failed.

        Returns:
            The counts.

        Raises:
            WebhookNotFoundError: There is no such webhook.
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
        """Lists how far the events of a task were delivered, the newest webhook first.

        Args:
            workspace_id: The workspace.
            task_id: The task.

        Returns:
            One delivery for each webhook that gets events of the task.

        Raises:
            WorkspaceNotFoundError, TaskNotFoundError: There is nothing by this id.
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
