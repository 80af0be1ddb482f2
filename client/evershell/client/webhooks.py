"""The results of the calls about webhooks."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from evershell.workspace.v1 import webhook_pb2, workspace_service_pb2
from google.protobuf.message import Message

from evershell.client._messages import Result
from evershell.client.events import EventType


class DeliveryStatus(StrEnum):
    """How far the events of a task were delivered."""

    UNSPECIFIED = "unspecified"
    """A state that this version of the client does not know."""
    PENDING = "pending"
    """Some events are not delivered yet; they are sent until they are."""
    DELIVERED = "delivered"
    """All events are delivered."""
    FAILED = "failed"
    """An event could not be delivered for 24 hours, or the webhook is disabled."""


@dataclass(frozen=True, slots=True)
class Webhook(Result):
    """An address to which the events of an organization are sent."""

    _message_type: ClassVar[type[Message]] = webhook_pb2.Webhook

    id: str
    org_id: str = ""
    url: str = ""
    """Where the events are sent."""
    event_types: tuple[EventType, ...] = ()
    """The types of the events that are sent."""
    description: str = ""
    """Human-readable."""
    created_by: str = ""
    """The user id or API key id of the caller who created it."""
    created_at: datetime | None = None
    previous_secret_expires_at: datetime | None = None
    """Until when requests are also signed with the secret that was replaced; None if not."""
    disabled_at: datetime | None = None
    """Since when nothing is sent, because the receiver answered 410; None if events are sent."""


@dataclass(frozen=True, slots=True)
class CreatedWebhook(Result):
    """The answer to webhooks.create."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CreateWebhookResponse

    webhook: Webhook
    secret: str = field(default="", repr=False)
    """Signs the requests to the webhook. No other answer has it.

    Empty if an earlier call with the same idempotency key has created the webhook, even if its
    answer was lost: webhooks.rotate makes a new one.
    """
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class RotatedSecret(Result):
    """The answer to webhooks.rotate."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.RotateWebhookSecretResponse

    webhook: Webhook
    secret: str = field(default="", repr=False)
    """The new secret. No other answer has it."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class ReplayResult(Result):
    """The answer to webhooks.replay."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.ReplayWebhookResponse

    replayed: int = 0
    """The deliveries that this call made pending."""
    remaining: int = 0
    """The failed deliveries that need a further call."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class WebhookDelivery(Result):
    """How far the events of one task were delivered to one webhook."""

    _message_type: ClassVar[type[Message]] = webhook_pb2.WebhookDelivery

    webhook_id: str
    workspace_id: str = ""
    task_id: str = ""
    status: DeliveryStatus = DeliveryStatus.UNSPECIFIED
    delivered_seq: int = 0
    """The `seq` of the last event that was delivered; 0 if none was."""
    last_seq: int = 0
    """The `seq` of the last event that is to be delivered."""
    attempts: int = 0
    """Failed attempts to deliver the next event."""
    last_error: str = ""
    """Why the last attempt failed; empty if it did not."""
    last_attempt_at: datetime | None = None
    """When the last attempt ended; None if there was none."""
    next_attempt_at: datetime | None = None
    """When the next attempt is due; None if there is none."""
