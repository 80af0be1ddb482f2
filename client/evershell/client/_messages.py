"""Converts between the messages of the protos and the frozen results of the client.

A result is a dataclass. Its fields have the same names as the fields of the message, unless `named`
gives a different name. The annotation of a field decides how the field is converted. If the type
includes None, an empty field of the message becomes None.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

UNSPECIFIED = "unspecified"
_NAME = "name in the message"

Enum = TypeVar("Enum", bound=StrEnum)


class Result:
    """A frozen result of a call."""

    __slots__ = ()

    _message_type: ClassVar[type[Message]]

    @classmethod
    def _from_message(cls, message: Message) -> Self:
        readers = _readers(cls)  # type: ignore[arg-type] # a class is hashable
        return cls(**{name: read(message) for name, read in readers})

    def _to_message(self) -> Any:
        return _to_message(self)

    def to_dict(self) -> dict[str, Any]:
        """The result as the REST API shows it, for `json.dumps`.

        Times are RFC 3339 in UTC, enums are their names, and 64-bit integers are strings.
        """
        return MessageToDict(
            _to_message(self),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )


def named(name: str) -> dict[str, str]:
    """The metadata of a result's field whose name in the message is `name`."""
    return {_NAME: name}


def name_in_message(field: "dataclasses.Field[Any]") -> str:
    """The name that a result's field has in the message."""
    return str(field.metadata.get(_NAME, field.name))


Reader = Callable[[Any], Any]


@functools.cache
def _readers(cls: Hashable) -> tuple[tuple[str, Reader], ...]:
    """For each field of the result, the function that reads it from the message."""
    result: Any = cls
    descriptor = result._message_type.DESCRIPTOR
    hints = typing.get_type_hints(result)
    readers = []
    for field in dataclasses.fields(result):
        kinds = _kinds(hints[field.name])
        optional = type(None) in kinds
        name = name_in_message(field)
        if name in descriptor.oneofs_by_name:
            readers.append((field.name, _oneof_reader(name, kinds)))
        elif name in descriptor.fields_by_name:
            of_message = descriptor.fields_by_name[name]
            readers.append((field.name, _reader(of_message, kinds[0], optional=optional)))
    return tuple(readers)


def _kinds(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, TypeVar):
        hint = hint.__bound__
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _reader(field: Any, kind: Any, *, optional: bool) -> Reader:
    name = field.name
    if kind is timedelta:
        return lambda message: (
            getattr(message, name).ToTimedelta() if message.HasField(name) else None
        )
    if kind is Decimal:
        return lambda message: _amount(getattr(message, name)) if message.HasField(name) else None
    if kind is datetime:
        return lambda message: _time(message, name)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enum_reader(field, kind, optional=optional)
    if isinstance(kind, type) and issubclass(kind, Result):
        return lambda message: (
            kind._from_message(getattr(message, name))
            if not optional or message.HasField(name)
            else None
        )
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(item, type) and issubclass(item, Result):
            return lambda message: tuple(map(item._from_message, getattr(message, name)))
        if isinstance(item, type) and issubclass(item, StrEnum):
            known, unknown = _members(field, item), item(UNSPECIFIED)
            return lambda message: tuple(
                known.get(each, unknown) for each in getattr(message, name)
            )
        return lambda message: tuple(getattr(message, name))
    if typing.get_origin(kind) is Mapping:
        return lambda message: dict(getattr(message, name))
    if optional:
        return lambda message: getattr(message, name) or None
    return lambda message: getattr(message, name)


def _time(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    moment: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    return moment


def _amount(money: Any) -> Decimal:
    """The amount without zeros at its end: 0, 0.5."""
    if not money.nanos:
        return Decimal(money.units)
    return (Decimal(money.units) + Decimal(money.nanos).scaleb(-9)).normalize()


def _enum_reader(field: Any, kind: type[Enum], *, optional: bool) -> Reader:
    name, empty = field.name, None if optional else kind(UNSPECIFIED)
    known = _members(field, kind)
    return lambda message: known.get(getattr(message, name), empty)


def _members(field: Any, kind: type[Enum]) -> dict[int, Enum]:
    """Maps the numbers of the enum to its members, without zero."""
    return {value.number: kind(value.name) for value in field.enum_type.values if value.number}


def _oneof_reader(name: str, kinds: tuple[Any, ...]) -> Reader:
    results = {
        kind._message_type.DESCRIPTOR.full_name: kind for kind in kinds if kind is not type(None)
    }

    def read(message: Any) -> Result | None:
        chosen = message.WhichOneof(name)
        if chosen is None:
            return None
        content = getattr(message, chosen)
        result: Result = results[content.DESCRIPTOR.full_name]._from_message(content)
        return result

    return read


def _to_message(result: Result) -> Message:
    message = result._message_type()
    descriptor = message.DESCRIPTOR
    for field in dataclasses.fields(result):  # type: ignore[arg-type]
        value = getattr(result, field.name)
        if value is None or _is_unspecified(value):
            continue
        name = name_in_message(field)
        if name in descriptor.oneofs_by_name:
            _put_oneof(message, name, value)
        elif name in descriptor.fields_by_name:
            _put(message, descriptor.fields_by_name[name], value)
    return message


def _is_unspecified(value: object) -> bool:
    """Whether this is the enum member for unknown values, and not a text with the same value."""
    return isinstance(value, StrEnum) and value == UNSPECIFIED


def _put(message: Message, field: Any, value: Any) -> None:
    if isinstance(value, datetime):
        getattr(message, field.name).FromDatetime(value)
    elif isinstance(value, timedelta):
        getattr(message, field.name).FromTimedelta(value)
    elif isinstance(value, Decimal):
        _put_amount(getattr(message, field.name), value)
    elif isinstance(value, StrEnum):
        setattr(message, field.name, field.enum_type.values_by_name[value.value].number)
    elif isinstance(value, Result):
        # Marks the field as set, even if the message is empty.
        getattr(message, field.name).SetInParent()
        getattr(message, field.name).MergeFrom(_to_message(value))
    elif isinstance(value, tuple):
        getattr(message, field.name).extend(
            _to_message(each) if isinstance(each, Result) else each
            for each in value
            if not _is_unspecified(each)
        )
    elif isinstance(value, Mapping):
        getattr(message, field.name).update(value)
    else:
        setattr(message, field.name, value)


def _put_amount(money: Any, value: Decimal) -> None:
    """Writes the amount. Raises ValueError if it is infinite or has more than nine decimals."""
    nanos = value.scaleb(9)
    if not value.is_finite() or nanos != int(nanos):
        raise ValueError(f"{value} is not an amount in USD with at most nine decimals")
    money.currency_code = "USD"
    money.units, money.nanos = divmod(int(nanos), 10**9)


def _put_oneof(message: Message, name: str, value: Result) -> None:
    for field in message.DESCRIPTOR.oneofs_by_name[name].fields:
        if field.message_type is value._message_type.DESCRIPTOR:
            _put(message, field, value)
