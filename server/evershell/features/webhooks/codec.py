"""Converts the messages of webhooks."""

from collections.abc import Sequence

from evershell.workspace.v1 import event_pb2, webhook_pb2, workspace_service_pb2

from evershell.api.values import timestamp
from evershell.core import errors
from evershell.core.addresses import Network
from evershell.core.event import EventType
from evershell.features.webhooks.rules import CreateWebhook, Webhook, WebhookDelivery

_Types = event_pb2.EventType.Type
_TYPES = {int(_Types.Value(each)): each for each in EventType if each is not EventType.UNSPECIFIED}


def decode_create(
    request: workspace_service_pb2.CreateWebhookRequest, allowed_networks: Sequence[Network]
) -> CreateWebhook:
    """Decodes a request to create a webhook. Raises Failure validation_error."""
    unknown = [number for number in request.event_types if number not in _TYPES]
    if unknown:
        raise errors.invalid({"event_types": f"{unknown[0]} is not a type of event"})
    return CreateWebhook(
        url=request.url,
        event_types=[_TYPES[number] for number in request.event_types],
        description=request.description,
        allowed_networks=allowed_networks,
    )


def encode_webhook(webhook: Webhook) -> webhook_pb2.Webhook:
    """The webhook as a message, without secrets."""
    return webhook_pb2.Webhook(
        id=webhook.id,
        org_id=webhook.org_id,
        url=webhook.url,
        event_types=[_Types.Value(each) for each in webhook.event_types],
        description=webhook.description,
        created_by=webhook.created_by,
        created_at=timestamp(webhook.created_at),
        previous_secret_expires_at=timestamp(webhook.previous_secret_expires_at),
        disabled_at=timestamp(webhook.disabled_at),
    )


def encode_delivery(delivery: WebhookDelivery) -> webhook_pb2.WebhookDelivery:
    """The delivery as a message."""
    return webhook_pb2.WebhookDelivery(
        webhook_id=delivery.webhook_id,
        workspace_id=delivery.workspace_id,
        task_id=delivery.task_id,
        status=webhook_pb2.WebhookDelivery.Status.Value(delivery.status),
        delivered_seq=delivery.delivered_seq,
        last_seq=delivery.last_seq,
        attempts=delivery.attempts,
        last_error=delivery.last_error,
        last_attempt_at=timestamp(delivery.last_attempt_at),
        next_attempt_at=timestamp(delivery.next_attempt_at),
    )
