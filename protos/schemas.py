"""The JSON schemas of messages and enums in the OpenAPI document."""

import re
from typing import Any

from deprecations import with_deprecation
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from limits import narrowed
from source import PACKAGE, Protos

SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"},
}
WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["10s"],
    },
}
# Maps a field of the type Struct to the message that describes its content.
STRUCTS = {f"{PACKAGE}.Error.details": f"{PACKAGE}.ErrorDetails"}


class Schemas:
    """Builds schemas, and collects the schemas of messages and enums in `components`, by name."""

    def __init__(self, protos: Protos) -> None:
        self._protos = protos
        self.components: dict[str, Any] = {}
        self._full_names: dict[str, str] = {}
        self._is_request = False

    def reference(self, described: Descriptor | EnumDescriptor) -> dict[str, Any]:
        """A reference to the schema of a message or enum, which is built at the first reference."""
        name = component_name(described.full_name)
        if name not in self.components:
            # Set before the schema is built, because a message may refer to itself.
            self.components[name] = {}
            self._full_names[name] = described.full_name
            self.components[name] = (
                self._enum(described)
                if isinstance(described, EnumDescriptor)
                else self._message(described)
            )
        if self._full_names[name] != described.full_name:
            raise ValueError(
                f"{described.full_name} and {self._full_names[name]} would both be named {name}"
            )
        return reference("schemas", name)

    def request(self, name: str, fields: list[FieldDescriptor]) -> dict[str, Any]:
        """A reference to the schema of a body with these fields of a request."""
        required = [field.name for field in fields if self.is_required(field)]
        self._full_names[name] = name
        self._is_request = True
        schema = self._object(fields, required)
        self._is_request = False
        for each in schema["properties"].values():
            # Some generators assume that a body always has the fields with a default.
            if "default" in each:
                each["description"] += f" Default: {each.pop('default'):,}."
        self.components[name] = schema
        return reference("schemas", name)

    def is_required(self, field: FieldDescriptor) -> bool:
        """Whether a request must have the field."""
        behaviors = self._protos.option(field.GetOptions(), "google.api.field_behavior")
        names = self._protos.pool.FindEnumTypeByName("google.api.FieldBehavior").values_by_number
        return "REQUIRED" in {names[number].name for number in behaviors}

    def _message(self, message: Descriptor) -> dict[str, Any]:
        is_details = message.full_name in STRUCTS.values()
        required = [
            field.name for field in message.fields if self._is_set(field) and not is_details
        ]
        schema = self._object(list(message.fields), required)
        # Exactly one field of a oneof is set. A schema with `oneOf` would say so, but generators
        # drop such a message or make a type of each choice.
        # The oneof of an optional field has the field's name, preceded by an underscore.
        if any(not oneof.name.startswith("_") for oneof in message.oneofs):
            schema["minProperties"] = len(required) + 1
        return self._described(message.full_name, schema)

    def _is_set(self, field: FieldDescriptor) -> bool:
        """Whether every reply has the field.

        False while the schema of a request is built, because a client may leave out fields of
        nested messages. Also false for Google's messages, which requests and replies share.
        """
        if self._is_request or not field.full_name.startswith(PACKAGE):
            return False
        rule = self._protos.option(field.GetOptions(), f"{PACKAGE}.field")
        return bool(rule.always_set or not field.has_presence)

    def _object(self, fields: list[FieldDescriptor], required: list[str]) -> dict[str, Any]:
        properties = {
            field.name: with_deprecation(
                self._protos, field, self._described(field.full_name, self.of_field(field))
            )
            for field in fields
        }
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        return schema | ({"required": required} if required else {})

    def _enum(self, enum: EnumDescriptor) -> dict[str, Any]:
        """The schema of an enum. Its description has the comments of the values.

        Leaves out the value 0 if it has no comment, because it is never sent.
        """
        comments = {
            value.name: " ".join(self._protos.comment(f"{enum.full_name}.{value.name}").split())
            for value in enum.values
        }
        names = [value.name for value in enum.values if value.number or comments[value.name]]
        values = "\n".join(f"- `{name}`: {comments[name]}" for name in names if comments[name])
        heading = prose(self._protos.comment(enum.full_name))
        schema = {"type": "string", "enum": names}
        description = "\n\n".join(filter(None, [heading, values]))
        return {"description": description} | schema if description else schema

    def of_field(self, field: FieldDescriptor) -> dict[str, Any]:
        """The schema of the value of a field."""
        if field.is_repeated and not _is_map(field):
            return self._list(field)
        single = self._single(field)
        return single if "$ref" in single else narrowed(self._protos, field, single)

    def _list(self, field: FieldDescriptor) -> dict[str, Any]:
        rule = self._protos.option(field.GetOptions(), f"{PACKAGE}.field")
        item = self._single(field)
        schema = {
            "type": "array",
            "items": narrowed(self._protos, field, item) | {"minLength": 1} if rule.is_id else item,
        }
        limits = {"minItems": "min", "maxItems": "max"}
        return schema | {
            keyword: getattr(rule, limit)
            for keyword, limit in limits.items()
            if rule.HasField(limit)
        }

    def _single(self, field: FieldDescriptor) -> dict[str, Any]:
        message = field.message_type
        if message is not None and _is_map(field):
            value = self.of_field(message.fields_by_name["value"])
            return {"type": "object", "additionalProperties": value}
        if field.full_name in STRUCTS:
            return self.reference(self._protos.pool.FindMessageTypeByName(STRUCTS[field.full_name]))
        if message is not None:
            return dict(WELL_KNOWN.get(message.full_name) or self.reference(message))
        if field.enum_type is not None:
            return self.reference(field.enum_type)
        return dict(SCALARS[field.type])

    def _described(self, full_name: str, schema: dict[str, Any]) -> dict[str, Any]:
        description = prose(self._protos.comment(full_name))
        return {"description": description} | schema if description else schema


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def component_name(full_name: str) -> str:
    """The name of a schema: without dots, which most languages do not allow in names.

    The name of a nested type begins with the name of its message, unless one of the two names
    contains the other: `TaskStatus`, but `ErrorCode` and `EventType`.
    """
    outer, _, inner = (
        full_name.removeprefix(f"{PACKAGE}.").removeprefix("google.type.").rpartition(".")
    )
    outer = outer.replace(".", "")
    if inner.startswith(outer):
        return inner
    return outer if outer.endswith(inner) else outer + inner


def reference(kind: str, name: str) -> dict[str, Any]:
    """A reference to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def prose(comment: str) -> str:
    """A comment as Markdown, each paragraph on one line.

    A line that begins with a heading such as `Effect:`, or with `Needs`, starts a new paragraph.
    """
    apart = re.sub(r"\n(?=(?:[A-Z]\w+: |Needs ))", "\n\n", comment)
    return "\n\n".join(
        " ".join(paragraph.split())
        for paragraph in re.split(r"\n\s*\n", apart)
        if paragraph.strip()
    )
