"""The google.api.http annotations would serve grpc-gateway as they serve Envoy.

First by the rules that google/api/http.proto and grpc-gateway state, then, where it is installed,
by grpc-gateway itself, whose own OpenAPI document is a second opinion on ours.
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

from server.stack.envoy.config import ROOT
from tests.support.openapi import Operation, operations, resolved

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
# The grammar in google/api/http.proto.
LITERAL = r"[A-Za-z0-9\-._~]+"
SEGMENT = rf"(?:\*\*?|{LITERAL})"
VARIABLE = rf"\{{[a-z_][a-z0-9_.]*(?:={SEGMENT}(?:/{SEGMENT})*)?\}}"
TEMPLATE = re.compile(rf"/(?:{SEGMENT}|{VARIABLE})(?:/(?:{SEGMENT}|{VARIABLE}))*(?::{LITERAL})?")
PLUGIN = shutil.which("protoc-gen-openapiv2")


def rules() -> list[tuple[Any, Any]]:
    """Every RPC with each of its rules, additional ones too."""
    found = []
    for rpc in SERVICE.methods:
        http = rpc.GetOptions().Extensions[annotations_pb2.http]
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
def test_a_rule_keeps_the_rules(rpc: Any, rule: Any) -> None:
    # The selector is for configuration files; one level of bindings is all there may be, and
    # `custom` is no method of ours.
    assert not rule.selector
    assert all(not inner.additional_bindings for inner in rule.additional_bindings)
    assert verb(rule) in {"get", "put", "post", "delete", "patch"}
    assert TEMPLATE.fullmatch(template(rule)), template(rule)
    # A variable is a field of the request that is neither repeated nor a message, and is there
    # once.
    fields = rpc.input_type.fields_by_name
    assert len(set(variables(rule))) == len(variables(rule))
    for name in variables(rule):
        assert is_primitive(fields[name]), name
    # `**` would have to be the end of the path.
    assert "**" not in template(rule).removesuffix("**")
    if verb(rule) in ("get", "delete"):
        assert not rule.body
        # What is left is the query's: no map and no list of messages fits there.
        for field in rpc.input_type.fields:
            assert field.message_type is None or not field.is_repeated
    else:
        assert rule.body == "*" or rule.body in fields
    assert not rule.response_body or rule.response_body in rpc.output_type.fields_by_name
    # A client's stream over HTTP has no end that a proxy could wait for.
    assert not rpc.client_streaming


def matches_the_same(one: list[str], other: list[str]) -> bool:
    """Whether there is a path that both templates match."""
    return len(one) == len(other) and all(
        a == b or "{" in (a[0], b[0]) for a, b in zip(one, other, strict=True)
    )


def test_no_request_fits_two_rules() -> None:
    """grpc-gateway takes the last of several that match, Envoy the first."""
    for (rpc, rule), (other_rpc, other) in combinations(rules(), 2):
        if verb(rule) == verb(other):
            same = matches_the_same(template(rule).split("/")[1:], template(other).split("/")[1:])
            assert not same, (rpc.name, other_rpc.name, template(rule), template(other))


def test_every_binding_fills_the_same_request() -> None:
    """Each has the variables of the RPC's first one: a call that leaves one out would be about
    nothing.
    """
    for rpc, rule in rules():
        first = rpc.GetOptions().Extensions[annotations_pb2.http]
        assert set(variables(first)) <= set(variables(rule))


@pytest.fixture(scope="module")
def of_the_gateway(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What grpc-gateway makes of the protos: its proxy, which is thrown away, and its document."""
    if PLUGIN is None:
        pytest.skip("no grpc-gateway here; apt-get install golang-grpc-gateway")
    out = tmp_path_factory.mktemp("gateway")
    script = f"""
import sys
sys.path.insert(0, "protos")
import generate
files = ",".join(f"M{{file}}=example.com/{{file.rpartition('/')[0]}}" for file in generate.proto_files())
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


def test_the_gateway_has_the_same_operations(of_the_gateway: dict[str, Any]) -> None:
    theirs = {
        (method.upper(), path) for path, item in of_the_gateway["paths"].items() for method in item
    }
    assert theirs == {(each.method, each.path) for each in operations()}


@pytest.mark.parametrize("ours", operations(), ids=lambda each: each.described["operationId"])
def test_the_gateway_reads_the_same_from_a_request(
    of_the_gateway: dict[str, Any], ours: Operation
) -> None:
    theirs = of_the_gateway["paths"][ours.path][ours.method.lower()]
    places = {(each["name"], each["in"]) for each in theirs["parameters"] if each["in"] != "body"}
    assert places == {(each["name"], each["in"]) for each in ours.described["parameters"]}
    (body,) = [each["schema"] for each in theirs["parameters"] if each["in"] == "body"] or [{}]
    if "$ref" in body:
        body = of_the_gateway["definitions"][body["$ref"].rpartition("/")[2]]
    of_ours = ours.described.get("requestBody", {"content": {"application/json": {"schema": {}}}})
    # The gateway has one body for all bindings of an RPC, without what any of them has in its path.
    elsewhere = {
        name
        for rpc, rule in rules()
        for name in variables(rule)
        if f"_{rpc.name}" in theirs["operationId"]
    }
    named = of_ours["content"]["application/json"]["schema"].get("properties", {}).keys()
    assert body.get("properties", {}).keys() == named - elsewhere


def test_the_gateway_gives_fields_the_same_types(of_the_gateway: dict[str, Any]) -> None:
    compared = 0
    for name, theirs in of_the_gateway["definitions"].items():
        ours = resolved({"$ref": "#/components/schemas"}).get(name.removeprefix("v1"))
        if ours is not None and "properties" in ours:
            assert {field: kind(each) for field, each in theirs["properties"].items()} == {
                field: kind(each) for field, each in ours["properties"].items()
            }, name
            compared += 1
    assert compared > 10


def kind(schema: dict[str, Any]) -> tuple[Any, ...]:
    """Its type in JSON, and whether it is a string that holds something else."""
    if "$ref" in schema:
        return ("ref", re.sub(r"^.*/(\w*v1)?|\.", "", schema["$ref"]))
    inner = kind(schema["items"]) if "items" in schema else ()
    return (schema.get("type"), schema.get("format"), *inner)
