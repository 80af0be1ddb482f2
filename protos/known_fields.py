"""The names of fields that a route accepts in a body, for the filter that refuses all others.

Envoy's transcoder drops unknown fields: docs/decisions/0036-unknown-fields.md.
"""

from typing import Any

from source import Binding

# Turns the filter on: envoy.yaml turns it off for all other routes.
FILTER = {
    "evershell.known_fields": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {},
    }
}
# The name by which known_fields.lua means all other names.
ALL_OTHERS = "*"


def names(binding: Binding) -> dict[str, Any]:
    """What known_fields.lua reads: the known names, each with those of its own value."""
    found = _names(binding.rpc.input_type)
    if binding.unknown_fields == "refused_in_messages":
        found[ALL_OTHERS] = True
    return found


def _names(message: Any) -> dict[str, Any]:
    """The names of a message's fields in JSON, in both spellings, with those of its messages.

    True for a value in which no names are checked.
    """
    found: dict[str, Any] = {}
    for field in message.fields:
        # The transcoder also accepts durations and times as objects.
        has_names = field.message_type is not None
        is_map = has_names and field.message_type.GetOptions().map_entry
        fields = _names(field.message_type) if has_names and not is_map else True
        found |= {field.name: fields, field.json_name: fields}
    return found
