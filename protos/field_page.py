"""Writes docs/fields.md: all fields of requests, answers and events, from the comments."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from schemas import SCALARS, STRUCTS
from source import PACKAGE, Protos

_HEAD = """\
# Fields

<!-- Written by `make gen` from the comments of protos/evershell/workspace/v1. Do not edit. -->

All fields of requests, answers and events, in the order in which the
[methods](calls.md#all-methods) use them. The names are those of REST and of gRPC. In JSON, an
`int64` is a string, a time is a string in RFC 3339, and a duration a string in seconds, such as
`"10s"`. Fields of the path are in the requests too.

"""
_TABLE = "| field | type | meaning |\n|---|---|---|\n"
_VALUES = "| value | meaning |\n|---|---|\n"
_GOOGLE = {
    "google.protobuf.Timestamp": "time",
    "google.protobuf.Duration": "duration",
    "google.protobuf.Struct": "JSON object",
    "google.type.Money": "amount of money",
}


def field_page(protos: Protos) -> str:
    """The page: a section for each message and each enum."""
    return _HEAD + "\n".join(_section(protos, each) for each in _used(protos))


def _used(protos: Protos) -> Iterator[Descriptor | EnumDescriptor]:
    """The requests and answers of all methods, each followed by what its fields use."""
    left: list[Descriptor | EnumDescriptor] = []
    for method in protos.service.methods:
        left += (method.input_type, method.output_type)
    done = set()
    while left:
        described = left.pop(0)
        if described.full_name in done or not described.full_name.startswith(f"{PACKAGE}."):
            continue
        done.add(described.full_name)
        if isinstance(described, Descriptor):
            if described.GetOptions().map_entry:
                continue
            yield described
            used = [field.message_type or field.enum_type for field in described.fields]
            used += [
                protos.pool.FindMessageTypeByName(STRUCTS[field.full_name])
                for field in described.fields
                if field.full_name in STRUCTS
            ]
            left = [each for each in used if each] + left
        else:
            yield described


def _section(protos: Protos, described: Descriptor | EnumDescriptor) -> str:
    comment = _text(protos, described.full_name)
    head = f"## {_name(described)}\n\n" + (f"{comment}\n\n" if comment else "")
    if isinstance(described, Descriptor):
        if not described.fields:
            return f"{head}It has no fields.\n"
        rows = (
            f"| `{field.name}` | {_type(field)} | {_text(protos, field.full_name)} |\n"
            for field in described.fields
        )
        return head + _TABLE + "".join(rows)
    values = (
        (value.name, _text(protos, f"{described.full_name}.{value.name}"), value.number)
        for value in described.values
    )
    # The value 0 is never sent if it has no comment.
    rows = (f"| `{name}` | {text} |\n" for name, text, number in values if number or text)
    return head + _VALUES + "".join(rows)


def _name(described: Descriptor | EnumDescriptor) -> str:
    return described.full_name.removeprefix(f"{PACKAGE}.")


def _type(field: FieldDescriptor) -> str:
    """The type of a field, with a link to its section if the page has one."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return f"map of string to {_type(message.fields_by_name['value'])}"
    described = message or field.enum_type
    if described is None:
        schema = SCALARS[field.type]
        text = str(schema.get("format", schema["type"]))
    elif described.full_name.startswith(f"{PACKAGE}."):
        name = _name(described)
        text = f"[{name}](#{name.lower().replace('.', '')})"
    else:
        text = _GOOGLE[described.full_name]
    return f"list of {text}" if field.is_repeated else text


def _text(protos: Protos, full_name: str) -> str:
    return " ".join(protos.comment(full_name).split()).replace("|", "\\|")
