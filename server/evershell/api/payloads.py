"""Converts the payload of an event to arguments for the constructor of its message.

A payload is the JSON of a message. `ParseDict` reads every form that JSON allows for a field, which
takes many steps. The events that this service writes use one form for each field, except that int64
is a string or a number. This module converts these forms, and `ParseDict` reads all others.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

from evershell.workspace.v1 import event_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

# Returns the value for the constructor. Raises UnusualError.
_Convert: TypeAlias = Callable[[Any], Any]


class UnusualError(Exception):
    """A value is not in the form that this service writes."""


def convert(event_type: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for the constructor of the message in Event's field `event_type`.

    Ignores fields that the message does not have, because a later version may have written them.
    The message's constructor raises ValueError for numbers out of range and for unknown names of
    enum values.

    Raises UnusualError. In that case, or if the constructor fails, use `parse`.
    """
    try:
        return _convert_fields(_fields(_descriptor(event_type)), payload)
    except ValueError as error:
        raise UnusualError from error


def parse(event_type: str, payload: Mapping[str, Any]) -> Message:
    """The message, from any form that JSON allows. Ignores unknown fields. Raises ParseError."""
    message: Message = getattr(event_pb2.Event(), event_type)
    return ParseDict(dict(payload), message, ignore_unknown_fields=True)


@cache
def _descriptor(event_type: str) -> Descriptor:
    descriptor = event_pb2.Event.DESCRIPTOR.fields_by_name[event_type].message_type
    assert descriptor is not None
    return descriptor


@cache
def _fields(message: Descriptor) -> dict[str, _Convert]:
    """The conversion of each field of the message, by the field's name."""
    # JSON names are unusual: ParseDict accepts them, but this service does not write them.
    unusual = {field.json_name: _unusual for field in message.fields}
    return {**unusual, **{field.name: _conversion(field) for field in message.fields}}


def _conversion(field: FieldDescriptor) -> _Convert:
    if field.message_type is not None:
        if field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
            return _unusual if field.is_repeated else _timestamp
        fields = _fields(field.message_type)
        convert = _convert_items if field.is_repeated else _convert_fields
        return lambda value: convert(fields, value)
    return _unusual if field.is_repeated else _CONVERSIONS.get(field.cpp_type, _unusual)


def _convert_fields(fields: Mapping[str, _Convert], value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusualError
    converted = {}
    for name, item in value.items():
        convert = fields.get(name)
        if convert is not None:
            converted[name] = convert(item)
    return converted


def _convert_items(fields: Mapping[str, _Convert], value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UnusualError
    return [_convert_fields(fields, item) for item in value]


def _unusual(value: object) -> object:
    raise UnusualError


def _text(value: object) -> str:
    if type(value) is not str:
        raise UnusualError
    return value


def _integer(value: object) -> int:
    if type(value) is int:
        return value
    if type(value) is str and value.isdigit():
        return int(value)
    raise UnusualError


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise UnusualError
    return value


def _timestamp(value: object) -> Timestamp:
    moment = Timestamp()
    moment.FromJsonString(_text(value))
    return moment


_CONVERSIONS: Mapping[int, _Convert] = {
    FieldDescriptor.CPPTYPE_STRING: _text,
    # For an enum, the constructor accepts the name of a value.
    FieldDescriptor.CPPTYPE_ENUM: _text,
    FieldDescriptor.CPPTYPE_INT32: _integer,
    FieldDescriptor.CPPTYPE_INT64: _integer,
    FieldDescriptor.CPPTYPE_BOOL: _boolean,
}
