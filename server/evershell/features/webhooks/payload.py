"""The body of the request that sends an event to the receiver of a webhook."""

import json

from evershell.api.event_codec import encode_event
from evershell.api.values import rest_fields
from evershell.core.event import Event
from evershell.features.webhooks.rules import FORM

__all__ = ["FORM", "payload"]


def payload(event: Event) -> tuple[str, bytes]:
    """The content type and the body: the event as REST shows it."""
    content = rest_fields(encode_event(event).event)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return "application/json", text.encode()
