"""The google.api.http annotations work for grpc-gateway as well as for Envoy.

The first tests check the rules in google/api/http.proto and in grpc-gateway's documentation. The
others run grpc-gateway, where it is installed, and compare its OpenAPI document with ours.
"""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor

from tests.support.openapi import Operation, document, operations, resolved
from tests.support.stack import ROOT

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
# The grammar in google/api/http.proto.
LITERAL = r"[A-Za-z0-9\-._~]+"
SEGMENT = rf"(?:\*\*?|{LITERAL})"
VARIABLE = rf"\{{[a-z_][a-z0-9_.]*(?:={SEGMENT}(?:/{SEGMENT})*)?\}}"
TEMPLATE = re.compile(rf"/(?:{SEGMENT}|{VARIABLE})(?:/(?:{SEGMENT}|{VARIABLE}))*(?::{LITERAL})?")
PLUGIN = shutil.which("protoc-gen-openapiv2")


def rules() -> list[tuple[Any, Any]]:
    """Each RPC with each of its rules, including additional bindings. Some RPCs have none."""
    found = []
    for rpc in SERVICE.methods:
        http = rpc.GetOptions().Extensions[annotations_pb2.http]
        if http.WhichOneof("pattern"):
            found += [(rpc, rule) for rule in (http, *http.additional_bindings)]
    return found


def verb(rule: Any) -> str:
    return str(rule.WhichOneof("pattern"))


def template(rule: Any) -> str:
    return str(getattr(rule, verb(rule)))


def variables(rule: Any) -> list[str]:
    return re.findall(r"\{([^}=]+)", template(rule))


def is_primitive(field: FieldDescriptor) -> bool:
    return field.message_type is None and not field.is_repeated


@pytest.mark.parametrize(("rpc", "rule"), rules(), ids=lambda value: getattr(value, "name", ""))
def test_a_rule_is_valid(rpc: Any, rule: Any) -> None:
    # Only configuration files have a selector, bindings cannot nest, and we use no `custom` method.
    assert not rule.selector
    assert all(not inner.additional_bindings for inner in rule.additional_bindings)
    assert verb(rule) in {"get", "put", "post", "delete", "patch"}
    assert TEMPLATE.fullmatch(template(rule)), template(rule)
    # A variable is a field of the request that is neither repeated nor a message, and occurs once.
    fields = rpc.input_type.fields_by_name
    assert len(set(variables(rule))) == len(variables(rule))
    for name in variables(rule):
        assert is_primitive(fields[name]), name
    # `**` may only be the end of the path.
    assert "**" not in template(rule).removesuffix("**")
    if verb(rule) in ("get", "delete"):
        assert not rule.body
        # The other fields are query parameters, which cannot be maps or lists of messages.
        for field in rpc.input_type.fields:
            assert field.message_type is None or not field.is_repeated
    else:
        assert rule.body == "*" or rule.body in fields
    assert not rule.response_body or rule.response_body in rpc.output_type.fields_by_name
    # A proxy cannot wait for the end of a client's stream over HTTP.
    assert not rpc.client_streaming


def matches_the_same(one: list[str], other: list[str]) -> bool:
    """Whether there is a path that both templates match."""
    return len(one) == len(other) and all(
        a == b or "{" in (a[0], b[0]) for a, b in zip(one, other, strict=True)
    )


def test_no_request_matches_two_rules() -> None:
    """Of several rules that match, grpc-gateway takes the last and Envoy the first."""
    for (rpc, rule), (other_rpc, other) in combinations(rules(), 2):
        if verb(rule) == verb(other):
            same = matches_the_same(template(rule).split("/")[1:], template(other).split("/")[1:])
            assert not same, (rpc.name, other_rpc.name, template(rule), template(other))


def test_every_binding_has_the_same_variables() -> None:
    """Each binding has the variables of the first one, without which a call has no subject."""
    for rpc, rule in rules():
        first = rpc.GetOptions().Extensions[annotations_pb2.http]
        assert set(variables(first)) <= set(variables(rule))


@pytest.fixture(scope="module")
def gateway_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document of grpc-gateway. Its proxy is generated, too, to see that this works."""
    if PLUGIN is None:
        pytest.skip("no grpc-gateway here; apt-get install golang-grpc-gateway")
    out = tmp_path_factory.mktemp("gateway")
    script = f"""
import sys
sys.path.insert(0, "protos")
import generate
files = ",".join(
    f"M{{file}}=example.com/{{file.rpartition('/')[0]}}" for file in generate.proto_files()
)
generate.protoc(
    "--grpc-gateway_out={out}", "--grpc-gateway_opt=standalone=true," + files,
    "--openapiv2_out={out}", "--openapiv2_opt=json_names_for_fields=false," + files,
)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(out.rglob("workspace_service.pb.gw.go"))
    (path,) = Path(out).rglob("workspace_service.swagger.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_the_gateway_has_the_same_operations(gateway_document: dict[str, Any]) -> None:
    theirs = {
        (method.upper(), path)
        for path, item in gateway_document["paths"].items()
        for method in item
    }
    assert theirs == {(each.method, each.path) for each in operations()}


@pytest.mark.parametrize("ours", operations(), ids=lambda each: each.described["operationId"])
def test_the_gateway_has_the_same_parameters(
    gateway_document: dict[str, Any], ours: Operation
) -> None:
    theirs = gateway_document["paths"][ours.path][ours.method.lower()]
    parameters = theirs.get("parameters", [])
    places = {(each["name"], each["in"]) for each in parameters if each["in"] != "body"}
    # The protos have no headers.
    assert places == {
        (each["name"], each["in"])
        for each in ours.described["parameters"]
        if each["in"] != "header"
    }
    (body,) = [each["schema"] for each in parameters if each["in"] == "body"] or [{}]
    if "$ref" in body:
        body = gateway_document["definitions"][body["$ref"].rpartition("/")[2]]
    # The gateway has one body for all bindings of an RPC, without the path variables of any.
    in_a_path = {
        name
        for rpc, rule in rules()
        for name in variables(rule)
        if f"_{rpc.name}" in theirs["operationId"]
    }
    fields = (ours.body() or {}).get("properties", {}).keys()
    assert body.get("properties", {}).keys() == fields - in_a_path


def test_the_gateway_has_the_same_types(gateway_document: dict[str, Any]) -> None:
    compared = 0
    for name, theirs in gateway_document["definitions"].items():
        ours = resolved({"$ref": "#/components/schemas"}).get(name.removeprefix("v1"))
        if ours is not None and "properties" in ours:
            assert {
                field: kind(gateway_document, each) for field, each in theirs["properties"].items()
            } == {field: kind(document(), each) for field, each in ours["properties"].items()}, name
            compared += 1
    assert compared > 10


def kind(described: dict[str, Any], schema: dict[str, Any]) -> tuple[Any, ...]:
    """The JSON type of a schema in a document, with its format, and with the type of its items."""
    if "$ref" in schema:
        found: Any = described
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return (found["type"], None)
    inner = kind(described, schema["items"]) if "items" in schema else ()
    return (schema.get("type"), schema.get("format"), *inner)
