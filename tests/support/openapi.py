"""The OpenAPI document, and checks of answers against it."""

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from evershell.stack.envoy.documents import edge_file

URI = "urn:openapi"
# The extension that lists the error codes of a response, because all error responses have the same
# schema.
ERROR_CODES = "x-error-codes"
PATH = edge_file("openapi.yaml")


@cache
def document() -> dict[str, Any]:
    """Returns the parsed document that Envoy serves."""
    loaded: dict[str, Any] = yaml.safe_load(PATH.read_text())
    return loaded


@dataclass(frozen=True)
class Operation:
    """One method on one path."""

    method: str
    path: str
    described: dict[str, Any]

    def slugs(self) -> dict[str, int]:
        """Returns the slugs of the operation's errors, each with its HTTP status."""
        return {
            slug: int(status)
            for status, response in self.described["responses"].items()
            for slug in resolved(response).get(ERROR_CODES, [])
        }

    def body(self) -> dict[str, Any] | None:
        """Returns the schema of the request body; None if there is no body."""
        if "requestBody" not in self.described:
            return None
        content = self.described["requestBody"]["content"]
        return resolved(content["application/json"]["schema"])

    def check(self, status: int, content_type: str, body: Any) -> None:
        """Checks that the document describes an answer and every field in it.

        Raises AssertionError or jsonschema.ValidationError.
        """
        responses = self.described["responses"]
        assert str(status) in responses, (
            f"{self.method} {self.path} does not document status {status}: {body}"
        )
        response = resolved(responses[str(status)])
        content = response["content"]
        assert content_type in content, (
            f"{self.method} {self.path} does not document answers of type {content_type}"
        )
        validate(body, content[content_type]["schema"])
        if ERROR_CODES in response:
            assert body["error"]["code"] in response[ERROR_CODES], (
                f"{self.method} {self.path} does not document this error: {body}"
            )


@cache
def operations() -> list[Operation]:
    """Returns all operations of the document."""
    return [
        Operation(method.upper(), path, described)
        for path, item in document()["paths"].items()
        for method, described in item.items()
    ]


def operation(method: str, path: str) -> Operation | None:
    """Returns the operation for a request; None if the document has none."""
    for each in operations():
        if each.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each.path), path):
            return each
    return None


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """Follows references until the value is not a reference. Returns this value."""
    while "$ref" in value:
        found: Any = document()
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def validate(instance: Any, schema: dict[str, Any]) -> None:
    """Checks a value against a schema. Raises jsonschema.ValidationError."""
    absolute = _walked(
        schema, lambda each: {**each, "$ref": URI + each["$ref"]} if "$ref" in each else each
    )
    _format_checking(absolute).validate(instance)


def _format_checking(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(
        schema, registry=_registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


@cache
def _registry() -> Registry[Any]:
    """Returns the schemas of the document, changed to forbid additional properties.

    Callers must ignore unknown fields, but a test must fail if an answer has one.
    """

    def closed(schema: Any) -> Any:
        return (
            {**schema, "additionalProperties": False}
            if schema.get("type") == "object" and "properties" in schema
            else schema
        )

    strict = {
        "components": {"schemas": _walked(deepcopy(document()["components"]["schemas"]), closed)}
    }
    registry: Registry[Any] = Registry().with_resource(URI, DRAFT202012.create_resource(strict))
    return registry


def _walked(value: Any, change: Any) -> Any:
    """Applies `change` to every mapping in the value, to inner mappings first."""
    if isinstance(value, dict):
        return change({name: _walked(each, change) for name, each in value.items()})
    if isinstance(value, list):
        return [_walked(each, change) for each in value]
    return value
