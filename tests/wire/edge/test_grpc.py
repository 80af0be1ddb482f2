"""The gRPC listener of Envoy, which passes calls through without transcoding."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import grpc
import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

from bench.http2 import Connection, message
from tests.support.edge.cases import CANCEL
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import AWKWARD, Stub
from tests.support.wires import read_failure


@pytest.fixture
def channel(edge: RunningEdge) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(edge.grpc_address) as channel:
        yield channel


def test_a_caller_cannot_set_internal_metadata(
    edge: RunningEdge, channel: grpc.Channel, stub: Stub
) -> None:
    client = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    request = workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
    forged = (("x-evershell-edge", "rest"), ("x-request-id", "chosen-by-the-client"))
    answer, call = client.CancelTask.with_call(request, metadata=forged, timeout=10)
    assert answer.outcome == workspace_service_pb2.CancelTaskResponse.accepted
    metadata = stub.seen[-1][1]
    assert "x-evershell-edge" not in metadata
    assert metadata["x-evershell-host"] == edge.grpc_address
    assert (
        dict(call.initial_metadata())["x-request-id"]
        == metadata["x-request-id"]
        != "chosen-by-the-client"
    )


def test_a_client_at_the_port_of_rest_learns_the_port_of_grpc(edge: RunningEdge) -> None:
    with grpc.insecure_channel(edge.rest_url.removeprefix("http://")) as channel:
        client = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            client.CancelTask(workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1"))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    port = edge.settings.grpc_port
    assert raised.value.details() == f"This port serves REST; gRPC has port {port}."
    # Clients that do not speak gRPC get the error of REST.
    answer = httpx.post(
        f"{edge.rest_url}/evershell.workspace.v1.WorkspaceService/CancelTask", trust_env=False
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "grpc-status" not in answer.headers


def test_errors_pass_unchanged(channel: grpc.Channel, stub: Stub) -> None:
    client = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        client.CancelTask(
            workspace_service_pb2.CancelTaskRequest(workspace_id="error_workspace_not_found"),
            timeout=10,
        )
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == AWKWARD
    trailing = metadata_of(raised.value)
    assert trailing["grpc-status-details-bin"]
    assert "x-evershell-error" not in trailing


@pytest.mark.parametrize(
    ("method", "retry"), [("GetTask", {"retry_delay": "1s"}), ("CancelTask", None)]
)
def test_a_call_that_the_library_of_a_worker_has_cancelled_is_unavailable(
    channel: grpc.Channel, stub: Stub, method: str, retry: dict[str, str] | None
) -> None:
    client = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    request = getattr(workspace_service_pb2, f"{method}Request")(workspace_id="bare_1")
    with pytest.raises(grpc.RpcError) as raised:
        getattr(client, method)(request, timeout=10)
    refused = read_failure(raised.value)
    assert (refused.status, refused.slug) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert refused.details.get("RetryInfo") == retry
    assert refused.request_id == stub.seen[-1][1]["x-request-id"]
    assert "library" not in refused.message


@pytest.mark.parametrize(
    ("method", "limit"),
    [("CancelTask", 16_384), ("SubmitTask", 1_048_576), ("WatchEvents", 1_048_576)],
)
def test_messages_over_the_size_limit_are_refused(
    channel: Any, stub: Stub, method: str, limit: int
) -> None:
    path = f"/{workspace_service_pb2.DESCRIPTOR.package}.WorkspaceService/{method}"
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(path)(bytes(limit + 1), timeout=10)
    refused = read_failure(raised.value)
    assert refused.status is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.slug, f"{limit:,} bytes" in refused.message) == ("validation_error", True)
    assert refused.request_id
    assert refused.details["ErrorInfo"]["domain"] == "evershell.ai"
    assert not stub.seen
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(path)(bytes(limit), timeout=10)
    assert "bytes" not in str(raised.value.details()), (
        "a message of exactly the limit reaches the worker"
    )


READ_HEADERS = (
    "authorization",
    "idempotency-key",
    "last-event-id",
    "traceparent",
    "x-forwarded-for",
)


@pytest.mark.parametrize("header", READ_HEADERS)
@pytest.mark.parametrize("character", ["\xff", "\t"])
def test_a_header_that_is_not_printable_ascii_is_refused(
    edge: RunningEdge, stub: Stub, header: str, character: str
) -> None:
    value = f"Bearer k{character}k".encode("latin-1")
    path = "/evershell.workspace.v1.WorkspaceService/CancelTask"
    with closing(Connection(edge.grpc_address, path, ((header, value),))) as connection:
        stream = connection.call(message(b""))
        connection.flush()
        while not (ended := connection.receive()):
            pass
        assert ended == [(stream, grpc.StatusCode.INVALID_ARGUMENT.value[0])]
    with closing(HTTPConnection("127.0.0.1", edge.settings.rest_port, timeout=15)) as rest:
        rest.request("POST", CANCEL, headers={header: value})
        answer = rest.getresponse()
        assert (answer.status, f"header {header} ".encode() in answer.read()) == (400, True)
    assert not stub.seen


def grpc_status(edge: RunningEdge, header: str, value: bytes) -> Any:
    """The gRPC status of a CancelTask call that has this header."""
    path = "/evershell.workspace.v1.WorkspaceService/CancelTask"
    with closing(Connection(edge.grpc_address, path, ((header, value),))) as connection:
        connection.call(message(b""))
        connection.flush()
        while not (ended := connection.receive()):
            pass
        ((_, status),) = ended
        return status


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("grpc-timeout", ["abc", "", "1", "1x", "-1S", "999999999S", "1S "]),
        ("grpc-encoding", ["foo", "GZIP", "gzip,"]),
        # These headers have no meaning in a request, and are removed.
        ("grpc-previous-rpc-attempts", ["x"]),
        ("grpc-retry-pushback-ms", ["x"]),
        ("grpc-status", ["x"]),
        ("grpc-internal-encoding-request", ["x"]),
    ],
)
def test_a_bad_header_of_one_call_does_not_make_other_calls_fail(
    edge: RunningEdge, header: str, values: list[str]
) -> None:
    """After a bad value, a worker's gRPC library would refuse the header from every caller."""
    is_refused = header in ("grpc-timeout", "grpc-encoding")
    expected = grpc.StatusCode.INVALID_ARGUMENT if is_refused else grpc.StatusCode.OK
    for value in values:
        assert grpc_status(edge, header, value.encode()) == expected.value[0], value
    with grpc.insecure_channel(edge.grpc_address) as channel:
        stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        request = workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
        for timeout in (10, 20.5, 3_000, None):
            for compression in (None, grpc.Compression.Gzip):
                stub.CancelTask(request, timeout=timeout, compression=compression)
    assert httpx.post(f"{edge.rest_url}{CANCEL}", trust_env=False).status_code == 202


def test_a_bad_binary_header_is_refused_and_does_not_affect_other_callers(
    edge: RunningEdge, stub: Stub
) -> None:

    def rest(value: str) -> httpx.Response:
        headers = {"x-trace-bin": value}
        return httpx.post(f"{edge.rest_url}{CANCEL}", headers=headers, trust_env=False)

    for bad in ("!!!", "Y", "YQ=a", "YQ===", "YQ,!"):
        assert (
            grpc_status(edge, "x-trace-bin", bad.encode())
            == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        )
        answer = rest(bad)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "validation_error")
        assert "x-trace-bin" in answer.json()["error"]["message"]
    assert not stub.seen
    for good in ("", "YQ", "YQ==", "YWI", "YWJj,YQ"):
        assert grpc_status(edge, "x-trace-bin", good.encode()) == grpc.StatusCode.OK.value[0]
        assert rest(good).status_code == 202


@pytest.mark.parametrize("trailer", [("grpc-timeout", b"abc"), ("x-trace-bin", b"!!!")])
@pytest.mark.parametrize("is_rest", [False, True])
def test_trailers_of_a_request_do_not_reach_the_worker(
    edge: RunningEdge, trailer: tuple[str, bytes], is_rest: bool
) -> None:
    """A trailer that the worker's gRPC library cannot read would make other callers' calls fail."""
    address, path = edge.grpc_address, "/evershell.workspace.v1.WorkspaceService/CancelTask"
    if is_rest:
        address, path = edge.rest_url.removeprefix("http://"), CANCEL
    content_type = "application/json" if is_rest else "application/grpc"
    with closing(Connection(address, path, content_type=content_type)) as connection:
        stream = connection.call(b"" if is_rest else message(b""), [trailer])
        body = connection.collect(stream)
        connection.flush()
        while not (ended := connection.receive()) and not body.endswith(b"}"):
            pass
        if is_rest:
            assert json.loads(body)["outcome"] == "accepted"
        else:
            assert ended == [(stream, grpc.StatusCode.OK.value[0])]
    with grpc.insecure_channel(edge.grpc_address) as channel:
        stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        request = workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
        for _ in range(4):
            stub.CancelTask(request, timeout=10, metadata=(("x-trace-bin", b"ok"),))


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Watch",
        "/evershell.agent.v1.RuntimeService/Heartbeat",
        "/evershell.workspace.v1.WorkspaceService/Nothing",
        "/a.b.C/D",
        "/nothing",
    ],
)
def test_an_unknown_method_is_refused(channel: grpc.Channel, stub: Stub, method: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, method)
    refused = read_failure(raised.value)
    assert refused.status is grpc.StatusCode.UNIMPLEMENTED
    assert "does not serve this method" in refused.message
    assert refused.slug == "method_not_allowed"
    assert not stub.seen


def test_a_client_of_rest_is_told_its_port(edge: RunningEdge) -> None:
    answer = httpx.post(f"http://{edge.grpc_address}{CANCEL}", trust_env=False, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.json()["error"]["message"] == (
        f"No method has this path. This port serves gRPC; REST has port {edge.settings.rest_port}."
    )


def call(channel: Any, method: str) -> None:
    channel.unary_unary(method)(b"", timeout=10)


def metadata_of(error: Any) -> dict[str, Any]:
    """The initial and trailing metadata of an error."""
    return dict(error.initial_metadata() or ()) | dict(error.trailing_metadata() or ())


@pytest.mark.parametrize(
    ("method", "metadata", "can_repeat"),
    [
        # The edge does not know whether the call names a task.
        ("CancelTask", (), False),
        ("StopWorkspace", (), False),
        ("DeleteWorkspace", (), True),
        ("SubmitTask", (), False),
        ("SubmitTask", (("idempotency-key", "k"),), True),
        ("GetTask", (), True),
    ],
)
def test_without_workers_a_call_is_unavailable(
    edge_without_workers: RunningEdge,
    method: str,
    metadata: tuple[tuple[str, str], ...],
    can_repeat: bool,
) -> None:
    path = f"/{workspace_service_pb2.DESCRIPTOR.package}.WorkspaceService/{method}"
    with (
        grpc.insecure_channel(edge_without_workers.grpc_address) as channel,
        pytest.raises(grpc.RpcError) as raised,
    ):
        make: Any = channel.unary_unary(path)
        make(b"", timeout=10, metadata=metadata)
    refused = read_failure(raised.value)
    assert (refused.status, refused.slug) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert refused.details.get("RetryInfo") == ({"retry_delay": "1s"} if can_repeat else None)
    assert metadata_of(raised.value).get("retry-after") == ("1" if can_repeat else None)


def test_the_grpc_listener_serves_no_rest(edge: RunningEdge) -> None:
    answer = httpx.post(
        f"http://{edge.grpc_address}/v1/workspaces/ws_1/task/cancel", trust_env=False
    )
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
