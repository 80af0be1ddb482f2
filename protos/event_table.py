"""The types of events: as a Python module for the service, and as the table in docs/events.md."""

from typing import Any

from source import PACKAGE, Protos

_MODULE = '''\
"""The types of events, from event.proto."""

from enum import StrEnum


class EventType(StrEnum):
    """The values of EventType.Type in the protos."""

    # Read during an upgrade, by a worker of the old version, if a worker of the new version has
    # recorded an event of a new type.
    UNSPECIFIED = "type_unspecified"
{types}

    @classmethod
    def _missing_(cls, value: object) -> "EventType":
        return cls.UNSPECIFIED
'''
_HEAD = "| type | when | payload |\n|---|---|---|\n"


def module(protos: Protos) -> str:
    """A Python module with an enum of the types."""
    return _MODULE.format(
        types="\n".join(f'    {each.name.upper()} = "{each.name}"' for each in _payloads(protos))
    )


def event_table(protos: Protos) -> str:
    """A row for each type: the comment of its message, and its fields."""
    return _HEAD + "".join(
        f"| `{each.name}` | {_text(protos, each.message_type)} | {_fields(each.message_type)} |\n"
        for each in _payloads(protos)
    )


def _payloads(protos: Protos) -> Any:
    """The fields of the oneof `payload` of Event. Each has the name of a type."""
    return protos.pool.FindMessageTypeByName(f"{PACKAGE}.Event").oneofs_by_name["payload"].fields


def _text(protos: Protos, message: Any) -> str:
    return " ".join(protos.comment(message.full_name).split())


def _fields(message: Any) -> str:
    return ", ".join(f"`{field.name}`" for field in message.fields)
