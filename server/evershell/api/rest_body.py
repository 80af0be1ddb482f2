"""Reads the JSON body of a REST call into its request, and refuses ambiguous values.

The edge passes the body on unparsed, in the field of RestBody. Unknown fields, null, repeated names
and values of the wrong type are refused at any depth: docs/decisions/0036-unknown-fields.md.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import count
from typing import Any

from evershell.workspace.v1 import field_pb2
from evershell.workspace.v1.workspace_service_pb2 import RestBody
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from evershell.core import errors

# How many problems one answer names, and how many characters of a field's path. Both are limited
# because the edge gets the answer in a trailer.
_MAX_PROBLEMS = 10
_MAX_PATH_CHARACTERS = 200

_OBJECT = "must be an object"
# How many objects a body may have. No valid request has more than three. A body of 1 MiB could have
# 340,000 objects, which would take 200 MB, and block the worker for 1.5 s.
_MAX_OBJECTS = 100

# What a value must be, by the full name of its message or by the type of its field.
_TAKES: Mapping[str | int, str] = {
    "google.protobuf.Duration": 'must be a duration, a string that ends in s, such as "10s"',
    "google.protobuf.Timestamp": 'must be a time, a string such as "2026-01-02T03:04:05Z"',
    FieldDescriptor.TYPE_BOOL: "must be true or false",
    FieldDescriptor.TYPE_INT32: "must be an integer of 32 bits",
    FieldDescriptor.TYPE_INT64: "must be an integer of 64 bits",
}


def merge_rest_body(message: bytes, request: Message) -> None:
    """Sets the fields of the body in a request that already has the fields of the path.

    Raises Failure validation_error; DecodeError if `message` is not a protobuf message.
    """
    request.DiscardUnknownFields()
    body = RestBody.FromString(message).http_body.data
    if not body:
        return
    problems = _Problems()
    try:
        value = json.loads(body.decode(), object_pairs_hook=_bounded_objects())
    # The json module limits the digits of a number (ValueError) and the depth (RecursionError).
    except (ValueError, RecursionError) as error:
        problems.add("body", f"is not valid JSON: {_cause(error)}")
    else:
        _merge(problems, "", request, value)
    if problems:
        raise errors.invalid(problems)


def _cause(error: Exception) -> str:
    """The cause of the error, without any part of the body."""
    match error:
        case json.JSONDecodeError():
            return f"{error.msg} at line {error.lineno}, column {error.colno}"
        case UnicodeDecodeError():
            return f"byte {error.start + 1} is not UTF-8"
    return "a number is too long, the value is nested too deeply, or it has too many objects"


class _Object(dict[str, Any]):
    """A JSON object that knows which of its names were repeated."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self.repeated = {name for name, times in counts.items() if times > 1}


def _bounded_objects() -> Callable[[list[tuple[str, Any]]], _Object]:
    """An `object_pairs_hook` for one body, which raises ValueError if it has too many objects."""
    numbers = count(1)

    def make(pairs: list[tuple[str, Any]]) -> _Object:
        if next(numbers) > _MAX_OBJECTS:
            raise ValueError
        return _Object(pairs)

    return make


class _Problems(dict[str, str]):
    """The first problems of a body, by the path of the field."""

    def add(self, path: str, problem: str) -> None:
        """Adds a problem. Only the first problem of each field is kept."""
        if len(self) < _MAX_PROBLEMS:
            # Replaces what cannot be encoded, such as half of a surrogate pair.
            text = path[:_MAX_PATH_CHARACTERS].encode(errors="replace").decode()
            self.setdefault(text, problem)


def _merge(problems: _Problems, prefix: str, message: Message, value: object) -> None:
    """Sets the fields of a JSON object in the message. `prefix` is the path of the message."""
    if not isinstance(value, _Object):
        problems.add(prefix.rstrip(".") or "body", _OBJECT)
        return
    fields = _fields(message.DESCRIPTOR)
    seen = set()
    for name, item in value.items():
        field = fields.get(name)
        path = prefix + name
        if field is None:
            problems.add(path, "unknown field")
        elif name in value.repeated or field.name in seen:
            problems.add(path, "must not be repeated")
        elif item is None:
            problems.add(path, "must not be null; leave the field out")
        elif field.message_type is not None and _is_ours(field):
            _merge(problems, f"{path}.", getattr(message, field.name), item)
            getattr(message, field.name).SetInParent()
        else:
            _set(problems, path, message, field, item)
        if field is not None:
            seen.add(field.name)


def _set(
    problems: _Problems, path: str, message: Message, field: FieldDescriptor, value: Any
) -> None:
    """Sets a field that `_merge` does not treat as an object."""
    rule = field.GetOptions().Extensions[field_pb2.field]
    # For a list of 1 MiB, ParseDict would block the worker for up to 0.4 s.
    if field.is_repeated and isinstance(value, list | dict) and 0 < rule.max < len(value):
        problems.add(path, f"has {len(value):,} entries; at most {rule.max:,} are allowed")
        return
    parsed = type(message)()
    try:
        ParseDict({field.name: value}, parsed)
    except ParseError:
        problems.add(*_explained(path, field, value))
        return
    if isinstance(value, _Object) and value.repeated:
        problems.add(f"{path}.{min(value.repeated)}", "must not be repeated")
    # In the message, an empty list or id would be the same as an absent one.
    if not value and (rule.is_id or (field.is_repeated and rule.min)):
        problems.add(path, "must not be empty; leave the field out")
    in_path = getattr(message, field.name)
    if isinstance(in_path, str) and in_path and in_path != value:
        problems.add(path, "differs from the value in the path")
    message.MergeFrom(parsed)


def _explained(path: str, field: FieldDescriptor, value: Any) -> tuple[str, str]:
    """The path and the problem of a value that the field does not accept."""
    problems: Iterable[tuple[str, str]]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, dict):
            return path, _OBJECT
        problems = ((f".{k}", _text_problem(k) or _text_problem(each)) for k, each in value.items())
    elif field.is_repeated:
        if not isinstance(value, list):
            return path, "must be a list"
        problem_of = partial(_enum_problem, field) if field.enum_type else _text_problem
        problems = ((f"[{at}]", problem_of(each)) for at, each in enumerate(value))
    elif field.type == FieldDescriptor.TYPE_STRING:
        problems = [("", _text_problem(value))]
    else:
        return path, _TAKES[field.message_type.full_name if field.message_type else field.type]
    where, problem = next(each for each in problems if each[1])
    return path + where, problem


def _text_problem(value: object) -> str:
    """Why a string field does not take the value; empty if it does."""
    if not isinstance(value, str):
        return "must be a string"
    if any("\ud800" <= each <= "\udfff" for each in value):
        return "must be Unicode; it has half of a surrogate pair"
    return ""


def _enum_problem(field: FieldDescriptor, value: object) -> str:
    """Why a field of an enum does not take the value; empty if it does."""
    assert field.enum_type is not None, "the field is an enum"
    names = [each.name for each in field.enum_type.values if each.number]
    return "" if value in names else f"must be one of {', '.join(names)}"


def _is_ours(field: FieldDescriptor) -> bool:
    """Whether the field is an object in JSON: a message of this service, or an amount of money."""
    message = field.message_type
    assert message is not None, "the field is a message"
    return (
        message.file.package.startswith(("evershell.", "google.type"))
        and not message.GetOptions().map_entry
    )


@cache
def _fields(message: Descriptor) -> Mapping[str, FieldDescriptor]:
    """Maps both names that JSON may use, lowerCamelCase and the proto's, to the field."""
    return {field.json_name: field for field in message.fields} | dict(message.fields_by_name)
