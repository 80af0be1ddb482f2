"""The bodies of the requests of webhooks."""

import json

from google.protobuf.json_format import MessageToDict

from evershell.api.codec import encode_event
from evershell.core.event import Event


def event_payload(event: Event) -> tuple[str, bytes]:
    """The event as REST shows it."""
    content = MessageToDict(
        encode_event(event).event,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return "application/json", text.encode()
