"""Derives the OpenAPI document of the REST API from the protos: gen/evershell/edge/openapi.yaml.

The document describes the JSON of the edge's transcoder (its options are in envoy.yaml): fields
have their proto names, 64-bit numbers are strings, and enum values are their names. A reply always
has the fields without presence, even if they are zero.
"""

import json
import re
from http import HTTPStatus
from typing import Any

import headers
import yaml
from deprecations import with_deprecation
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from schemas import Schemas, component_name, prose, reference
from snippets import code_samples
from source import PACKAGE, Binding, Protos, Rule

import examples

OPENAPI_VERSION = "3.1.0"
# The version in the paths. It changes with the API, not with a release of the service.
API_VERSION = "v1"
TITLE = "Evershell workspaces"
BEARER = "bearer"
# Each organization has its own host.
SERVER = {
    "url": "https://{organization}.evershell.ai",
    "description": "The host of an organization.",
    "variables": {
        "organization": {
            "default": "your-organization",
            "description": "The name of the organization to which the credential belongs.",
        }
    },
}
LICENSE = {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
CONTACT = {"name": "Evershell", "url": "https://evershell.ai"}
ENVELOPE_NAME = "ErrorEnvelope"
# The field of a response that lists its error codes. Its schema does not list them, because all
# errors share the schema of the envelope.
ERROR_CODES = "x-error-codes"
TEXT_WIDTH = 120


def document(protos: Protos) -> str:
    """The content of openapi.yaml."""
    return yaml.dump(
        _Document(protos).content(),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=TEXT_WIDTH,
    )


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as a block, and does not use YAML aliases."""

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
        self._schemas = Schemas(protos)
        self._responses: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        named: set[str] = set()
        bindings = self._protos.bindings()
        # The operations are in the order of the protos. The first binding of an RPC is named after
        # the RPC. Its other bindings have the same name with a suffix.
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
        called = [rule.slug for binding in bindings for rule in self._protos.errors(binding)]
        other_refusals = "".join(
            f"\n- {rule.http} `{rule.slug}`: {rule.message}"
            for rule in rules
            if rule.slug not in called and not rule.a2a_only
        )
        about = prose(self._protos.comment(service.full_name)).partition("\n")[0]
        # Adds the schema of Error, to which the schema ErrorEnvelope refers.
        self._schemas.reference(self._protos.pool.FindMessageTypeByName(f"{PACKAGE}.Error"))
        return {
            "openapi": OPENAPI_VERSION,
            "info": {
                "title": TITLE,
                "version": API_VERSION,
                "description": (
                    f"{prose(self._protos.comment(service.full_name))}\n\n"
                    f"The edge refuses other requests:\n{other_refusals}"
                ),
                "contact": CONTACT,
                "license": LICENSE,
            },
            "servers": [SERVER],
            "security": [{BEARER: []}],
            "tags": [{"name": service.name, "description": about}],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    BEARER: {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key or a session token.",
                    },
                },
                "schemas": self._schemas.components | {ENVELOPE_NAME: ENVELOPE},
                "responses": self._responses,
                "examples": {rule.slug: _example(rule) for rule in rules if rule.slug in called},
                "headers": headers.HEADERS,
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
            "description": prose(rest),
            "parameters": [
                self._parameter(rpc.input_type.fields_by_name[field], "path") for field in in_path
            ],
        }
        if not binding.has_body:
            operation["parameters"] += [self._parameter(field, "query") for field in others]
        elif others:
            operation["requestBody"] = self._body(binding, name, others)
        # Only calls that accept an idempotency key can fail with this error.
        if "idempotency_conflict" in {rule.slug for rule in self._protos.errors(binding)}:
            operation["parameters"].append(headers.IDEMPOTENCY_KEY)
        operation["responses"] = self._successes(binding) | self._failures(binding)
        if binding.streams:
            operation["x-codeSamples"] = code_samples(binding.path)
        return with_deprecation(self._protos, rpc, operation)

    def _parameter(self, field: FieldDescriptor, place: str) -> dict[str, Any]:
        schema = self._schemas.of_field(field)
        parameter: dict[str, Any] = {"name": field.name, "in": place}
        if place == "path":
            parameter["required"] = True
            schema = {"minLength": 1} | schema
        parameter["description"] = prose(self._protos.comment(field.full_name))
        if not parameter["description"]:
            raise ValueError(f"{field.full_name} is a parameter and needs a comment")
        return with_deprecation(self._protos, field, parameter) | {"schema": schema}

    def _body(self, binding: Binding, name: str, fields: list[FieldDescriptor]) -> dict[str, Any]:
        """The request body. Each binding has its own schema, without the fields of its path."""
        content: dict[str, Any] = {"schema": self._schemas.request(f"{name}Request", fields)}
        if binding.edge.example:
            content["example"] = json.loads(binding.edge.example)
            # Raises ParseError if the example in the protos does not fit the message.
            json_format.ParseDict(
                content["example"], message_factory.GetMessageClass(binding.rpc.input_type)()
            )
        is_required = any(self._schemas.is_required(field) for field in fields)
        return {"required": is_required, "content": {"application/json": content}}

    def _successes(self, binding: Binding) -> dict[str, Any]:
        kind = "text/event-stream" if binding.streams else "application/json"
        reply = binding.rpc.output_type
        if binding.edge.stream_message:
            reply = self._protos.pool.FindMessageTypeByName(binding.edge.stream_message)
        schema = self._schemas.reference(reply)
        statuses = {
            binding.success_status: "",
            binding.edge.success_status_after_wait: ": it has a `wait`, and the task has ended",
        }
        stream = ": Server-Sent Events; each `data:` line is one message" if binding.streams else ""
        return {
            str(status): {
                "description": f"{HTTPStatus(status).phrase}{stream}{wait}.",
                "headers": headers.OF_SUCCESSES,
                "content": {
                    kind: {
                        "schema": schema,
                        "example": examples.reply(reply, after_wait=bool(wait)),
                    }
                },
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
        """A reference to the response for the errors that share a status.

        Operations with the same errors share the response.
        """
        codes = [rule.slug for rule in rules]
        name = "_or_".join(codes)
        self._responses[name] = {
            "description": "\n".join(f"- `{rule.slug}`: {rule.message}" for rule in rules),
            "headers": headers.of_errors(rules),
            ERROR_CODES: codes,
            "content": {
                "application/json": {
                    "schema": reference("schemas", ENVELOPE_NAME),
                    "examples": {code: reference("examples", code) for code in codes},
                }
            },
        }
        return reference("responses", name)


ENVELOPE = {
    "description": "The body of every error.",
    "type": "object",
    "properties": {"error": reference("schemas", component_name(f"{PACKAGE}.Error"))},
    "required": ["error"],
}


def _example(rule: Rule) -> dict[str, Any]:
    error: dict[str, Any] = {
        "code": rule.slug,
        "message": rule.message,
        "request_id": examples.REQUEST_ID,
    }
    if rule.details:
        error["details"] = json.loads(rule.details)
    return {
        "summary": f"{rule.http} {rule.slug}",
        "description": rule.example,
        "value": {"error": error},
    }


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
