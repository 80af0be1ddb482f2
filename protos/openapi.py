"""Derives the OpenAPI document of the REST API from the protos. The result is gen/openapi.yaml.

The document describes the JSON of the edge's transcoder (its options are in envoy.yaml): fields
have their proto names, 64-bit numbers are strings, and enum values are their names. A reply always
has the fields without presence, even if they are zero.
"""

import json
import re
from http import HTTPStatus
from typing import Any

import yaml
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from source import PACKAGE, Binding, Protos, Rule

OPENAPI_VERSION = "3.1.0"
# The version in the paths. It changes with the API, not with a release of the service.
API_VERSION = "v1"
TITLE = "Evershell workspaces"
BEARER = "bearer"
REQUEST_ID = "79130bac-f95a-43b2-b452-ebd8fa0d19b1"
TEXT_WIDTH = 120

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

# The headers of answers.
HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {
        "description": "Identifies the call in the logs.",
        "required": True,
        "schema": {"type": "string"},
    },
    "retry-after": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer"},
    },
    "www-authenticate": {
        "description": "The kind of credential that is required.",
        "schema": {"const": "Bearer"},
    },
}


def document(protos: Protos) -> str:
    """The content of gen/openapi.yaml."""
    return yaml.dump(
        _Document(protos).content(),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=TEXT_WIDTH,
    )


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and no YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


class _Document:
    """Builds the operations, and collects the schemas and responses that they refer to."""

    def __init__(self, protos: Protos) -> None:
        self._protos = protos
        self._schemas: dict[str, Any] = {}
        self._responses: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        named: set[str] = set()
        bindings = self._protos.bindings()
        # The operations have the order of the protos. The first binding of an RPC has its name; the
        # others have a suffix.
        order = [rpc.name for rpc in self._protos.service.methods]
        for binding in sorted(bindings, key=lambda binding: order.index(binding.rpc.name)):
            name = binding.rpc.name
            if name in named:
                name += "By" + _camel(re.findall(r"\{(\w+)\}", binding.path)[-1])
            named.add(name)
            paths.setdefault(binding.path, {})[binding.method.lower()] = self._operation(
                binding, name
            )
        service, rules = self._protos.service, self._protos.rules()
        called = {rule.slug for binding in bindings for rule in self._protos.errors(binding)}
        other_refusals = "".join(
            f"\n- {rule.http} `{rule.slug}`: {rule.message}"
            for rule in rules
            if rule.slug not in called
        )
        # ErrorEnvelope refers to this schema.
        self._schema(self._protos.pool.FindMessageTypeByName(f"{PACKAGE}.Error"))
        return {
            "openapi": OPENAPI_VERSION,
            "info": {
                "title": TITLE,
                "version": API_VERSION,
                "description": (
                    f"{_prose(self._protos.comment(service.full_name))}\n\n"
                    f"The edge refuses other requests:\n{other_refusals}"
                ),
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{BEARER: []}],
            "tags": [{"name": service.name}],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    BEARER: {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key or a session token.",
                    },
                },
                "schemas": self._schemas | {"ErrorEnvelope": ENVELOPE},
                "responses": self._responses,
                "examples": {rule.slug: _example(rule) for rule in rules},
                "headers": HEADERS,
            },
        }

    def _operation(self, binding: Binding, name: str) -> dict[str, Any]:
        rpc = binding.rpc
        summary, _, rest = self._protos.comment(rpc.full_name).partition("\n\n")
        in_path = re.findall(r"\{(\w+)\}", binding.path)
        others = [field for field in rpc.input_type.fields if field.name not in in_path]
        operation: dict[str, Any] = {
            "operationId": name,
            "tags": [rpc.containing_service.name],
            "summary": " ".join(summary.split()).rstrip("."),
            "description": _prose(rest),
            "parameters": [
                self._parameter(rpc.input_type.fields_by_name[field], "path") for field in in_path
            ],
        }
        if not binding.has_body:
            operation["parameters"] += [self._parameter(field, "query") for field in others]
        elif others:
            operation["requestBody"] = self._body(binding, others)
        operation["responses"] = self._successes(binding) | self._failures(binding)
        return operation

    def _parameter(self, field: FieldDescriptor, place: str) -> dict[str, Any]:
        parameter: dict[str, Any] = {"name": field.name, "in": place}
        if place == "path":
            parameter["required"] = True
        if description := _prose(self._protos.comment(field.full_name)):
            parameter["description"] = description
        return parameter | {"schema": self._type(field)}

    def _body(self, binding: Binding, fields: list[FieldDescriptor]) -> dict[str, Any]:
        schema = self._object(fields, [field.name for field in fields if self._is_required(field)])
        content: dict[str, Any] = {"schema": schema}
        if binding.edge.example:
            content["example"] = json.loads(binding.edge.example)
            # Raises ParseError if the example in the protos does not fit the message.
            json_format.ParseDict(
                content["example"], message_factory.GetMessageClass(binding.rpc.input_type)()
            )
        return {"required": "required" in schema, "content": {"application/json": content}}

    def _is_required(self, field: FieldDescriptor) -> bool:
        behaviors = self._protos.option(field.GetOptions(), "google.api.field_behavior")
        names = self._protos.pool.FindEnumTypeByName("google.api.FieldBehavior").values_by_number
        return "REQUIRED" in {names[number].name for number in behaviors}

    def _successes(self, binding: Binding) -> dict[str, Any]:
        kind = "text/event-stream" if binding.streams else "application/json"
        content = {kind: {"schema": self._schema(binding.rpc.output_type)}}
        statuses = {
            binding.success_status: "",
            binding.edge.success_status_after_wait: ": the task ended during the `wait`",
        }
        stream = ": Server-Sent Events; each `data:` line is one message" if binding.streams else ""
        return {
            str(status): {
                "description": f"{HTTPStatus(status).phrase}{stream}{wait}.",
                "headers": _headers("x-request-id"),
                "content": content,
            }
            for status, wait in sorted(statuses.items())
            if status
        }

    def _failures(self, binding: Binding) -> dict[str, Any]:
        by_status: dict[int, list[Rule]] = {}
        for rule in self._protos.errors(binding):
            by_status.setdefault(rule.http, []).append(rule)
        return {str(status): self._failure(rules) for status, rules in sorted(by_status.items())}

    def _failure(self, rules: list[Rule]) -> dict[str, Any]:
        """A reference to the response for the errors that share a status. Operations with the same
        errors share the response.
        """
        codes = [rule.slug for rule in rules]
        headers = ["x-request-id"]
        if any("retry_after_seconds" in rule.details for rule in rules):
            headers.append("retry-after")
        if "unauthenticated" in codes:
            headers.append("www-authenticate")
        narrowed = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
        name = "_or_".join(codes)
        self._responses[name] = {
            "description": "\n".join(f"- `{rule.slug}`: {rule.message}" for rule in rules),
            "headers": _headers(*headers),
            "content": {
                "application/json": {
                    "schema": {"allOf": [_reference("schemas", "ErrorEnvelope"), narrowed]},
                    "examples": {code: _reference("examples", code) for code in codes},
                }
            },
        }
        return _reference("responses", name)

    def _schema(self, described: Descriptor | EnumDescriptor) -> dict[str, Any]:
        """A reference to the schema of a message or enum, which is built at the first reference."""
        name = described.full_name.removeprefix(f"{PACKAGE}.")
        if name not in self._schemas:
            # A message may refer to itself.
            self._schemas[name] = {}
            self._schemas[name] = (
                self._enum(described)
                if isinstance(described, EnumDescriptor)
                else self._message(described)
            )
        return _reference("schemas", name)

    def _message(self, message: Descriptor) -> dict[str, Any]:
        schema = self._object(
            list(message.fields), [field.name for field in message.fields if not field.has_presence]
        )
        choices = [{"required": [field.name]} for oneof in message.oneofs for field in oneof.fields]
        if choices:
            schema["oneOf"] = choices
        return self._described(message.full_name, schema)

    def _object(self, fields: list[FieldDescriptor], required: list[str]) -> dict[str, Any]:
        properties = {
            field.name: self._described(field.full_name, self._type(field)) for field in fields
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
        heading = _prose(self._protos.comment(enum.full_name))
        schema = {"type": "string", "enum": names}
        description = "\n\n".join(filter(None, [heading, values]))
        return {"description": description} | schema if description else schema

    def _type(self, field: FieldDescriptor) -> dict[str, Any]:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {
                "type": "object",
                "additionalProperties": self._type(message.fields_by_name["value"]),
            }
        if message is not None:
            single = WELL_KNOWN.get(message.full_name) or self._schema(message)
        else:
            single = (
                self._schema(field.enum_type)
                if field.enum_type is not None
                else SCALARS[field.type]
            )
        return {"type": "array", "items": single} if field.is_repeated else dict(single)

    def _described(self, full_name: str, schema: dict[str, Any]) -> dict[str, Any]:
        description = _prose(self._protos.comment(full_name))
        return {"description": description} | schema if description else schema


ENVELOPE = {
    "description": "The body of every error.",
    "type": "object",
    "properties": {"error": {"$ref": "#/components/schemas/Error"}},
    "required": ["error"],
}


def _example(rule: Rule) -> dict[str, Any]:
    error: dict[str, Any] = {"code": rule.slug, "message": rule.message, "request_id": REQUEST_ID}
    if rule.details:
        error["details"] = json.loads(rule.details)
    return {
        "summary": f"{rule.http} {rule.slug}",
        "description": rule.example,
        "value": {"error": error},
    }


def _reference(kind: str, name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> dict[str, Any]:
    return {name: _reference("headers", name) for name in names}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _prose(comment: str) -> str:
    """A comment as Markdown, each paragraph on one line. A line that begins with a heading such as
    `Effect:` starts a new paragraph.
    """
    apart = re.sub(r"\n(?=(?:[A-Z]\w+: |Needs ))", "\n\n", comment)
    return "\n\n".join(
        " ".join(paragraph.split())
        for paragraph in re.split(r"\n\s*\n", apart)
        if paragraph.strip()
    )
