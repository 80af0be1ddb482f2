"""The google.api.http annotations work for grpc-gateway as well as for Envoy.

If grpc-gateway is installed, the tests also compare its OpenAPI document with ours.
"""

import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2
from google.api import annotations_pb2

from tests.support.openapi import operations
from tests.support.stack import ROOT

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
PLUGIN = shutil.which("protoc-gen-openapiv2")


def rules() -> list[tuple[Any, Any]]:
    """Returns each RPC with each of its rules, including additional bindings."""
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


def matches_the_same(one: list[str], other: list[str]) -> bool:
    """Whether some path matches both templates."""
    return len(one) == len(other) and all(
        a == b or "{" in (a[0], b[0]) for a, b in zip(one, other, strict=True)
    )


def test_no_request_matches_two_rules() -> None:
    """If several rules match, grpc-gateway uses the last one and Envoy the first one."""
    for (rpc, rule), (other_rpc, other) in combinations(rules(), 2):
        if verb(rule) == verb(other):
            same = matches_the_same(template(rule).split("/")[1:], template(other).split("/")[1:])
            assert not same, (rpc.name, other_rpc.name, template(rule), template(other))


@pytest.fixture(scope="module")
def gateway_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document that grpc-gateway writes.

    Its proxy is generated as well, to test that this works.
    """
    if PLUGIN is None:
        pytest.skip("no grpc-gateway here; apt-get install golang-grpc-gateway")
    out = tmp_path_factory.mktemp("gateway")
    script = f"""
import sys
sys.path.insert(0, "protos")
import generate
generate.protoc(
    "--grpc-gateway_out={out}", "--grpc-gateway_opt=standalone=true",
    "--openapiv2_out={out}", "--openapiv2_opt=json_names_for_fields=false",
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
