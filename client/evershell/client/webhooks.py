"""The results of the calls about webhooks."""

# Written by `make gen` from protos/. Do not edit.

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
    """A value that this version of the client does not know."""
    PENDING = "pending"
    """Some events are not delivered yet. The service sends them, and repeats attempts that fail."""
    DELIVERED = "delivered"
    """All events are delivered."""
    FAILED = "failed"
    """An event could not be delivered for 24 hours, or the webhook is disabled. `webhooks.replay`
    makes the delivery pending again. So does a new event of the task, unless the webhook is
    disabled."""


@dataclass(frozen=True, slots=True)
class Webhook(Result):
    """An address to which the events of an organization are sent.

    docs/webhooks.md describes the requests.
    """

    _message_type: ClassVar[type[Message]] = webhook_pb2.Webhook

    id: str
    """`wh_` and a ULID."""
    org_id: str = ""
    url: str = ""
    """Where the events are sent."""
    event_types: tuple[EventType, ...] = ()
    """The types of the events that are sent."""
    description: str = ""
    """Human-readable."""
    created_by: str = ""
    """The user id or API key id of the caller who created the webhook."""
    created_at: datetime | None = None
    previous_secret_expires_at: datetime | None = None
    """Until when requests are also signed with the previous secret; None if they are not."""
    disabled_at: datetime | None = None
    """When the webhook was disabled because its receiver answered 410 Gone; None if the webhook is
    enabled. `webhooks.replay` enables it again."""


@dataclass(frozen=True, slots=True)
class CreatedWebhook(Result):
    """The answer to `webhooks.create`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CreateWebhookResponse

    webhook: Webhook
    secret: str = field(default="", repr=False)
    """The secret that signs the requests to the webhook: `whsec_` and base64, as in Standard
    Webhooks. Empty in the answer to a repeated call: if you do not have the secret, call
    `webhooks.rotate`."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class RotatedSecret(Result):
    """The answer to `webhooks.rotate`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.RotateWebhookSecretResponse

    webhook: Webhook
    secret: str = field(default="", repr=False)
    """The new secret."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class ReplayResult(Result):
    """The answer to `webhooks.replay`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.ReplayWebhookResponse

    replayed: int = 0
    """The number of deliveries that this call made pending again."""
    remaining: int = 0
    """The number of failed deliveries that a further call must replay."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class WebhookDelivery(Result):
    """How far the events of one task were delivered to one webhook.

    Events are delivered in the order of their `seq`. An event that could not be delivered holds
    back the events after it.
    """

    _message_type: ClassVar[type[Message]] = webhook_pb2.WebhookDelivery

    webhook_id: str
    workspace_id: str = ""
    task_id: str = ""
    status: DeliveryStatus = DeliveryStatus.UNSPECIFIED
    delivered_seq: int = 0
    """Everything that had to be delivered up to this `seq` is delivered."""
    last_seq: int = 0
    """The `seq` of the last event that is to be delivered."""
    attempts: int = 0
    """The number of attempts to deliver the next event, all of which have failed. 0 again once that
    event is delivered."""
    last_error: str = ""
    """Why the last attempt failed; empty if it did not fail."""
    last_attempt_at: datetime | None = None
    """When the last attempt ended; None if there was none."""
    next_attempt_at: datetime | None = None
    """When the next attempt is due; None if there is none."""
