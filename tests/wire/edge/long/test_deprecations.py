"""How callers see that an RPC or a field is deprecated, as docs/versions.md says.

Nothing is deprecated, so the test deprecates GetWorkspace and CancelTaskRequest.reason in a copy of
the descriptor set.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from evershell.workspace.v1 import field_pb2, workspace_service_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from evershell.client import CallError, Client
from evershell.client._deprecations import warn_of_fields
from evershell.stack.envoy import config
from evershell.stack.envoy.documents import edge_file
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub
from tests.support.stack import ROOT

DAYS = field_pb2.Deprecation(since="2027-01-01", sunset="2028-01-01")
HEADERS = {"deprecation": "@1798761600", "sunset": "Sat, 01 Jan 2028 00:00:00 GMT"}
GENERATE = """
import json, sys
import a2a_routes
from openapi import document
from routes import edge_config
from source import Protos

protos = Protos(sys.stdin.buffer.read())
first = protos.first_methods()
routes = edge_config(
    protos,
    a2a_routes.routes(first),
    a2a_routes.grpc_size_limits(first),
    a2a_routes.grpc_classes(first),
)
print(json.dumps({"routes": routes, "openapi": document(protos)}))
"""


def descriptors(*, deprecated: bool = True) -> bytes:
    """The descriptor set with the deprecations; without `deprecated`, only with their dates."""
    files = descriptor_pb2.FileDescriptorSet.FromString(edge_file("workspace.binpb").read_bytes())
    for file in files.file:
        for method in (method for service in file.service for method in service.method):
            if method.name == "GetWorkspace":
                edge = method.options.Extensions[workspace_service_pb2.edge]
                edge.deprecation.CopyFrom(DAYS)
                method.options.deprecated = deprecated
        for message in file.message_type:
            for field in message.field:
                if (message.name, field.name) == ("CancelTaskRequest", "reason"):
                    field.options.Extensions[field_pb2.field].deprecation.CopyFrom(DAYS)
                    field.options.deprecated = deprecated
    return files.SerializeToString()


def generate(descriptor_set: bytes) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-c", GENERATE],
        cwd=ROOT / "protos",
        input=descriptor_set,
        capture_output=True,
        check=False,
    )


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    done = generate(descriptors())
    assert done.returncode == 0, done.stderr.decode()
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


@pytest.fixture(scope="module")
def deprecating_edge(
    _stub_and_address: tuple[Stub, str],
    generated: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningEdge]:
    folder = short_directory(tmp_path_factory)
    routes = folder / "routes.json"
    routes.write_text(json.dumps(generated["routes"]))
    find: Callable[..., Path] = lambda *names: (  # noqa: E731
        routes if names == ("routes.json",) else edge_file(*names)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "edge_file", find)
        with running_edge(folder, _stub_and_address[1]) as running:
            yield running


@pytest.mark.parametrize("workspace_id", ["ws_1", "error_workspace_not_found"])
def test_an_answer_over_rest_has_the_headers(
    deprecating_edge: RunningEdge, workspace_id: str
) -> None:
    with httpx.Client(base_url=deprecating_edge.rest_url, trust_env=False) as client:
        deprecated = client.get(f"/v1/workspaces/{workspace_id}")
        other = client.get(f"/v1/workspaces/{workspace_id}/tasks")
    assert HEADERS.items() <= deprecated.headers.items()
    assert not HEADERS.keys() & other.headers.keys()


def test_the_client_warns_at_the_line_that_calls_it(deprecating_edge: RunningEdge) -> None:
    with Client(deprecating_edge.grpc_address, "sk_1") as client:
        with pytest.warns(DeprecationWarning) as warned:
            client.get_workspace("ws_1")
            with pytest.raises(CallError):
                client.get_workspace("error_workspace_not_found")
        client.get_task("ws_1", "task_1")
    assert [(each.filename, str(each.message)) for each in warned] == 2 * [
        (
            __file__,
            "GetWorkspace is deprecated in the API of evershell. "
            "It works until Sat, 01 Jan 2028 00:00:00 GMT.",
        )
    ]


def test_the_client_warns_of_a_field_that_a_request_has() -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors()).file:
        pool.Add(file)
    described = pool.FindMessageTypeByName("evershell.workspace.v1.CancelTaskRequest")
    request: Any = message_factory.GetMessageClass(described)(workspace_id="ws_1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_fields(request)
    request.reason = "it has gone wrong"
    with pytest.warns(DeprecationWarning, match=r"CancelTaskRequest\.reason is deprecated"):
        warn_of_fields(request)


def test_the_openapi_document_says_it(generated: dict[str, Any]) -> None:
    document = yaml.safe_load(generated["openapi"])
    operations = [each for path in document["paths"].values() for each in path.values()]
    deprecated = [each for each in operations if each.get("deprecated")]
    assert [each["operationId"] for each in deprecated] == ["GetWorkspace"]
    fields = document["components"]["schemas"]["CancelTaskRequest"]["properties"]
    assert [name for name, each in fields.items() if each.get("deprecated")] == ["reason"]
    for each in (*deprecated, fields["reason"]):
        text = "Deprecated since 2027-01-01. It works until 2028-01-01 or longer."
        assert each["description"].endswith(text)


def test_a_deprecation_that_is_not_complete_is_refused() -> None:
    done = generate(descriptors(deprecated=False))
    assert done.returncode == 1
    assert b"GetWorkspace is deprecated: it needs `deprecated = true`" in done.stderr
