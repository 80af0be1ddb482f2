"""Marks what is deprecated: with headers of answers, and with texts in the OpenAPI document.

Both come from the `deprecation` in the options of RPCs and fields.
"""

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from replies import header
from source import PACKAGE, Protos


def response_headers(protos: Protos, rpc: Any) -> dict[str, Any]:
    """The part of a route that adds the headers `deprecation` (RFC 9745) and `sunset` (RFC 8594).

    Empty if the RPC is not deprecated. Raises ValueError if its options are not complete.
    """
    days = _days(protos, rpc)
    if days is None:
        return {}
    since, sunset = days
    return {
        "response_headers_to_add": [
            header("deprecation", f"@{since.timestamp():.0f}"),
            header("sunset", format_datetime(sunset, usegmt=True)),
        ]
    }


def with_deprecation(protos: Protos, element: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """The operation, parameter or schema `schema`, marked as deprecated if `element` is deprecated.

    `element` is an RPC or a field. Raises ValueError if its options are not complete.
    """
    days = _days(protos, element)
    if days is None:
        return schema
    since, sunset = (each.date().isoformat() for each in days)
    text = f"Deprecated since {since}. It works until {sunset} or longer."
    parts = filter(None, [schema.get("description"), text])
    return schema | {"description": "\n\n".join(parts), "deprecated": True}


def _days(protos: Protos, element: Any) -> tuple[datetime, datetime] | None:
    """Since when an RPC or a field is deprecated, and until when it works; None if it is not."""
    name = "field" if isinstance(element, FieldDescriptor) else "edge"
    options = element.GetOptions()
    rule = protos.option(options, f"{PACKAGE}.{name}").deprecation
    if not options.deprecated and not rule.since:
        return None
    if not options.deprecated or not rule.since < rule.sunset:
        raise ValueError(
            f"{element.full_name} is deprecated: it needs `deprecated = true`, and a `deprecation` "
            "with `since` and a later `sunset`"
        )
    since, sunset = (
        datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (rule.since, rule.sunset)
    )
    return since, sunset
