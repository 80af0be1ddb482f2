"""Headers that Envoy sets."""

from typing import Any


def header(name: str, value: str) -> dict[str, Any]:
    """The part of Envoy's configuration that sets a header, and replaces an existing one."""
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
