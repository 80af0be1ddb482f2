"""Edge tests that do not fit into the tables of cases: HTTP/2 frame by frame, the access log, and
an overloaded edge.
"""

import json
import socket

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from tests.support.edge.answers import as_answer, check
from tests.support.edge.cases import CANCEL
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub
from tests.support.waiting import eventually


def test_http2_answers_have_no_internal_headers_or_trailers(edge: RunningEdge, stub: Stub) -> None:
    for workspace in ("ws_1", "error_workspace_not_found"):
        names = http2_names(edge, f"/v1/workspaces/{workspace}/task/cancel")
        assert b":status" in names
        assert not [
            name for name in names if name.startswith((b"grpc-", b"x-evershell-", b"x-envoy-"))
        ]


def http2_names(edge: RunningEdge, path: str) -> list[bytes]:
    """The names of all headers and trailers of an answer. httpx does not return trailers."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    request = [
        (":method", "POST"),
        (":path", path),
        (":scheme", "http"),
        (":authority", "x"),
        ("te", "trailers"),
    ]
    connection.send_headers(1, request, end_stream=True)
    names: list[bytes] = []
    with socket.create_connection(("127.0.0.1", edge.settings.rest_port), timeout=15) as wire:
        wire.sendall(connection.data_to_send())
        while data := wire.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    names += [
                        name if isinstance(name, bytes) else name.encode()
                        for name, _ in event.headers or []
                    ]
                if isinstance(event, h2.events.StreamEnded):
                    return names
            wire.sendall(connection.data_to_send())
    raise AssertionError("the answer did not end")


def test_an_invalid_http2_request_resets_only_its_own_stream(edge: RunningEdge, stub: Stub) -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    path = "/v1/workspaces/waits/task/cancel"
    request = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
    connection.send_headers(1, request, end_stream=True)
    ended: dict[int, str] = {}
    with socket.create_connection(("127.0.0.1", edge.settings.rest_port), timeout=15) as wire:
        wire.sendall(connection.data_to_send())
        eventually(lambda: bool(stub.seen))
        connection.send_headers(3, [*request, ("x_under", "score")], end_stream=True)
        while ended.keys() != {1, 3}:
            wire.sendall(connection.data_to_send())
            for event in connection.receive_data(wire.recv(65536)):
                if isinstance(event, h2.events.StreamReset):
                    ended[event.stream_id or 0] = "reset"
                    stub.release.set()
                if isinstance(event, h2.events.ResponseReceived):
                    headers = dict(event.headers or [])
                    ended[event.stream_id or 0] = str(headers[":status"])  # type: ignore[index]
                assert not isinstance(event, h2.events.ConnectionTerminated)
    assert ended == {1: "202", 3: "reset"}


def test_the_access_log_omits_the_query(edge: RunningEdge, stub: Stub) -> None:
    log = edge.settings.admin_socket.parent / "envoy.log"
    answer = httpx.get(
        f"{edge.rest_url}/v1/workspaces/ws_1/tasks?page_token=private", trust_env=False
    )
    request_id = answer.headers["x-request-id"]
    eventually(lambda: request_id in log.read_text())
    line = next(line for line in log.read_text().splitlines() if request_id in line)
    entry = json.loads(line)
    assert (entry["method"], entry["path"], entry["status"]) == (
        "GET",
        "/v1/workspaces/ws_1/tasks",
        200,
    )
    assert "private" not in line


def test_an_edge_without_memory_answers_unavailable(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    little = {"max_heap_size_bytes: 1073741824": "max_heap_size_bytes: 1048576"}
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], replacements=little, healthz=503
    ) as running:
        eventually(
            lambda: (
                running.stat("overload.envoy.overload_actions.stop_accepting_requests.active") == 1
            )
        )
        answer = httpx.post(running.rest_url + CANCEL, trust_env=False)
    error = check(as_answer(answer))
    assert error is not None
    assert (error["code"], answer.headers["x-should-retry"]) == ("unavailable", "false")
