"""Webhooks: addresses to which events are sent, and the deliveries of these events."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from urllib.parse import SplitResult, urlsplit

from evershell.workspace.v1 import field_limits

from evershell.core import errors
from evershell.core.addresses import Address, Network, is_public
from evershell.core.errors import Failure
from evershell.core.event import Event, EventType
from evershell.core.validation import Fields

MAX_URL_CHARACTERS = field_limits.CREATE_WEBHOOK_URL_MAX
MAX_DESCRIPTION_CHARACTERS = field_limits.CREATE_WEBHOOK_DESCRIPTION_MAX
# How many webhooks an organization may have, and how many a task may have.
MAX_WEBHOOKS = 20
MAX_TASK_WEBHOOKS = 10
# A webhook sends what a caller with this scope may read, so its creator must have the scope.
READ_SCOPE = "workspace:read"
_PORTS = {"http": 80, "https": 443}
# The form of the bodies that an organization's webhooks send: the event, as REST shows it.
FORM = "event"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScope:
    """Limits a webhook to one task."""

    workspace_id: str
    task_id: str
    # The id that the caller gave to the webhook. It is unique within the task.
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An address to which events are sent. `sealed_…` fields are encrypted (core.ports.Sealing)."""

    # `wh_` and a ULID.
    id: str
    org_id: str
    url: str
    event_types: Sequence[EventType]
    description: str
    # The id of the user, or of the API key, that created the webhook.
    created_by: str
    created_at: datetime
    # If set, the webhook gets only events of workspaces that this user created.
    creator_user_id: str | None
    # None if the webhook is for the whole organization.
    task: TaskScope | None = None
    # The form of the bodies (features/registry.py).
    payload_form: str = FORM
    # Further headers of the webhook's requests, as sealed JSON; None if there are none.
    sealed_headers: bytes | None = None
    sealed_secret: bytes
    # Requests are also signed with this secret until it expires.
    sealed_previous_secret: bytes | None = None
    previous_secret_expires_at: datetime | None = None
    # When the webhook was disabled; None while it is enabled. A disabled webhook sends nothing.
    disabled_at: datetime | None = None

    @property
    def receiver(self) -> str:
        """The receiver of the webhook's requests: scheme, host and port of the URL."""
        return receiver_of(self.url)


def not_own(webhook_id: str) -> Failure:
    """The failure of a caller with only `workspace:read:own` for another creator's webhook."""
    return errors.created_by_other(f"Webhook {webhook_id}", "webhooks", (READ_SCOPE,))


class DeliveryStatus(StrEnum):
    """The values of WebhookDelivery.Status in the protos."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """How far the events of one task were delivered to one webhook."""

    webhook_id: str
    workspace_id: str
    task_id: str
    status: DeliveryStatus
    # 0 if no event was delivered.
    delivered_seq: int
    last_seq: int
    # The number of failed attempts to deliver the next event.
    attempts: int
    last_error: str
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """How many deliveries are pending, and how many have failed. Each count stops at 10,001."""

    pending: int = 0
    failed: int = 0
    # When the pending delivery that has been waiting longest began to wait.
    oldest: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryKey:
    """Identifies a delivery. `task_id` is empty for the events of the workspace itself."""

    workspace_id: str
    task_id: str
    webhook_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedDelivery:
    """A delivery that this process may attempt until its lease ends."""

    key: DeliveryKey
    webhook: Webhook
    # When the next event began to wait.
    pending_since: datetime
    delivered_seq: int
    attempts: int
    # The next events, each with its `seq`, in order. None stands for an event that must be read
    # separately, because it may be large.
    events: Sequence[tuple[int, Event | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """The result of an attempt to send a claimed delivery."""

    key: DeliveryKey
    # The `seq` of the last event that was delivered, by this attempt or before.
    delivered_seq: int
    # The number of failed attempts to deliver the event after `delivered_seq`.
    attempts: int = 0
    # Empty if the attempt has succeeded.
    error: str = ""
    # When to try again after an error; None if there will be no further attempt.
    retry_at: datetime | None = None
    # Whether the receiver refuses all further requests.
    disables_webhook: bool = False
    # Whether the delivery was attempted. If not, `error` says why.
    attempted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateWebhook:
    """A request to create a webhook. The constructor raises Failure validation_error."""

    url: str
    event_types: Sequence[EventType]
    description: str = ""
    task: TaskScope | None = None
    payload_form: str = FORM
    headers: Mapping[str, str] = field(default_factory=dict)
    # The networks whose addresses may be called although they are not public.
    allowed_networks: Sequence[Network] = ()

    def __post_init__(self) -> None:
        fields = Fields()
        fields.text("url", self.url, max_characters=MAX_URL_CHARACTERS, required=True)
        fields.text("description", self.description, max_characters=MAX_DESCRIPTION_CHARACTERS)
        if not self.event_types:
            fields.reject("event_types", "must have at least one type of event")
        problem = _problem_of(self.url, self.allowed_networks)
        if problem:
            fields.reject("url", problem)
        fields.check()


def _problem_of(url: str, allowed_networks: Sequence[Network]) -> str:
    """Why the URL cannot be called; empty if it can. The host is not resolved."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "must be a URL"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "must be a URL of printable ASCII characters, without spaces"
    allows_http = any(network.is_loopback for network in allowed_networks)
    if parts.scheme != "https" and not (allows_http and parts.scheme == "http"):
        return "must begin with https://"
    if "@" in parts.netloc or "#" in url:
        return "must have no user name, no password and no fragment"
    if not parts.hostname or port == 0:
        return "must name a host"
    literal = _literal(parts)
    if literal is not None and not may_call(literal, parts.scheme, allowed_networks):
        return "must not name an address that is not public"
    return ""


def _literal(parts: SplitResult) -> Address | None:
    """The IP address in the URL; None if the URL has a host name."""
    try:
        return ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return None


def may_call(address: Address, scheme: str, allowed_networks: Sequence[Network]) -> bool:
    """Whether requests may be sent to the address.

    HTTP without TLS may be used only for loopback addresses in `allowed_networks`.
    """
    allowed = any(
        network.version == address.version and address in network for network in allowed_networks
    )
    if scheme == "http":
        return allowed and address.is_loopback
    return allowed or is_public(address)


def receiver_of(url: str) -> str:
    """Scheme, host and port of a valid URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"
