"""The limits of fields: as JSON schema, and as a Python module for the service.

Both come from the `field` options in the protos.
"""

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from source import PACKAGE, Protos

# The characters of an id, for FieldRule.is_id.
ID_CHARACTERS = "[A-Za-z0-9_-]"
# The maximum length of an id.
ID_MAX = 128
_DURATION = "google.protobuf.Duration"
_FRACTION = r"(\.[0-9]{1,9})?"


def narrowed(protos: Protos, field: FieldDescriptor, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's value with the limits of the field."""
    rule = protos.option(field.GetOptions(), f"{PACKAGE}.field")
    if rule.is_id:
        return schema | {"pattern": f"^{ID_CHARACTERS}*$", "maxLength": ID_MAX}
    if field.message_type is not None and field.message_type.full_name == _DURATION:
        return schema | {"pattern": f"^{_seconds(rule.max)}s$"} if rule.HasField("max") else schema
    if schema["type"] == "object":
        return _map(rule, schema)
    least, most = ("minLength", "maxLength") if schema["type"] == "string" else _NUMBER
    if schema.get("format") == "int64":
        return schema | {"pattern": "^[0-9]+$"} if rule.HasField("min") else schema
    limits = {least: "min", most: "max", "default": "default_value"}
    return schema | {
        keyword: getattr(rule, limit) for keyword, limit in limits.items() if rule.HasField(limit)
    }


_NUMBER = ("minimum", "maximum")


def _map(rule: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if not rule.HasField("max"):
        return schema
    values = schema["additionalProperties"] | {"maxLength": rule.max_value}
    least = {"minProperties": rule.min} if rule.HasField("min") else {}
    return (
        schema
        | least
        | {
            "maxProperties": rule.max,
            "propertyNames": {"minLength": 1, "maxLength": rule.max_key},
            "additionalProperties": values,
        }
    )


def _seconds(most: int) -> str:
    """A regular expression that matches decimal numbers from 0 to `most`, which has two digits or
    more.
    """
    digits = str(most)
    # Whole numbers below `most`: numbers with fewer digits, and numbers that begin like `most` and
    # then have a smaller digit.
    below = [f"[0-9]{{1,{len(digits) - 1}}}"]
    for position, digit in enumerate(digits):
        if digit != "0":
            rest = len(digits) - position - 1
            below.append(
                f"{digits[:position]}[0-{int(digit) - 1}]" + (f"[0-9]{{{rest}}}" if rest else "")
            )
    return rf"(({'|'.join(below)}){_FRACTION}|{most}(\.0{{1,9}})?)"


def module(protos: Protos) -> str:
    """A Python module with the limits of the fields of requests."""
    lines = [f'ID = "{ID_CHARACTERS}{{1,{ID_MAX}}}"']
    for rpc in protos.service.methods:
        lines += _limits(protos, rpc.input_type, _constant(rpc.input_type.name))
    return (
        '"""The limits of the fields of requests, from the `field` options in the protos."""\n\n'
        + "\n".join(lines)
        + "\n"
    )


def _limits(protos: Protos, message: Descriptor, prefix: str) -> list[str]:
    """The limits of the fields of a message and of the messages in it."""
    lines = []
    for field in message.fields:
        name = f"{prefix}_{field.name.upper()}"
        rule = protos.option(field.GetOptions(), f"{PACKAGE}.field")
        lines += [
            f"{name}_{limit.name.upper()} = {value:_}"
            for limit, value in rule.ListFields()
            if limit.type == limit.TYPE_INT64
        ]
        inner = field.message_type
        if inner is not None and inner.full_name.rpartition(".")[0] == PACKAGE:
            lines += _limits(protos, inner, name)
    return lines


def _constant(message: str) -> str:
    words = re.findall("[A-Z][a-z]*", message.removesuffix("Request"))
    return "_".join(words).upper()
