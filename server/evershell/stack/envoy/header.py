"""Headers that Envoy sets."""

from typing import Any


def header(name: str, value: str) -> dict[str, Any]:
    """The element that sets a header, replacing an existing one."""
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
