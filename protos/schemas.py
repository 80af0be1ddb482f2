"""The JSON schemas of messages and enums in the OpenAPI document."""

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
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
    "google.protobuf.Struct": {"type": "object"},
}


class Schemas:
    """Builds schemas, and collects those of messages and enums in `components`, by name."""

    def __init__(self, protos: Protos) -> None:
        self._protos = protos
        self.components: dict[str, Any] = {}

    def reference(self, described: Descriptor | EnumDescriptor) -> dict[str, Any]:
        """A reference to the schema of a message or enum, which is built at the first reference."""
        name = described.full_name.removeprefix(f"{PACKAGE}.")
        if name not in self.components:
            # A message may refer to itself.
            self.components[name] = {}
            self.components[name] = (
                self._enum(described)
                if isinstance(described, EnumDescriptor)
                else self._message(described)
            )
        return reference("schemas", name)

    def _message(self, message: Descriptor) -> dict[str, Any]:
        schema = self.of_fields(
            list(message.fields), [field.name for field in message.fields if not field.has_presence]
        )
        choices = [{"required": [field.name]} for oneof in message.oneofs for field in oneof.fields]
        if choices:
            schema["oneOf"] = choices
        return self._described(message.full_name, schema)

    def of_fields(self, fields: list[FieldDescriptor], required: list[str]) -> dict[str, Any]:
        """The schema of an object with these fields."""
        properties = {
            field.name: self._described(field.full_name, self.of_field(field)) for field in fields
        }
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        return schema | ({"required": required} if required else {})

    def _enum(self, enum: EnumDescriptor) -> dict[str, Any]:
        """The values with their comments. Leaves out a zero without a comment: it is never sent."""
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
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {
                "type": "object",
                "additionalProperties": self.of_field(message.fields_by_name["value"]),
            }
        if message is not None:
            single = WELL_KNOWN.get(message.full_name) or self.reference(message)
        else:
            single = (
                self.reference(field.enum_type)
                if field.enum_type is not None
                else SCALARS[field.type]
            )
        return {"type": "array", "items": single} if field.is_repeated else dict(single)

    def _described(self, full_name: str, schema: dict[str, Any]) -> dict[str, Any]:
        description = prose(self._protos.comment(full_name))
        return {"description": description} | schema if description else schema


def reference(kind: str, name: str) -> dict[str, Any]:
    """A reference to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def prose(comment: str) -> str:
    """A comment as Markdown, each paragraph on one line. A line that begins with a heading such as
    `Effect:` starts a new paragraph.
    """
    apart = re.sub(r"\n(?=(?:[A-Z]\w+: |Needs ))", "\n\n", comment)
    return "\n\n".join(
        " ".join(paragraph.split())
        for paragraph in re.split(r"\n\s*\n", apart)
        if paragraph.strip()
    )
