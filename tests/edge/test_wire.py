"""Requests that no well-behaved client sends, workers that are away or slow, and HTTP/2 frame by frame."""

import json
import socket

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from .stub import RunningEdge, Stub, rule, until
from .test_rest import CANCEL, envelope


def raw_envelope(received: bytes, slug: str) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert lines[0].split()[1] == str(rule(slug).http), received
    error = json.loads(body)["error"]
    assert error["code"] == slug
    assert error["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("request_text", "slug"),
    [
        ("POST {} HTTP/1.0\r\n\r\n", "upgrade_required"),
        ("POST {} HTTP/1.1\r\nconnection: close\r\n\r\n", "validation_error"),
        ("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "validation_error"),
        ("\x16\x03\x01 garbage\r\n\r\n", "validation_error"),
        ("GET /v1/workspaces HTTP/1.1\r\nhost: x\r\nx-large: " + "x" * 70_000 + "\r\n\r\n", "headers_too_large"),
        ("GET {} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "upgrade_refused"),
    ],
)
def test_odd_requests(edge: RunningEdge, request_text: str, slug: str) -> None:
    raw_envelope(edge.raw(request_text.replace("{}", CANCEL).encode("latin-1")), slug)


def test_connect_is_refused(edge: RunningEdge) -> None:
    with socket.create_connection(("127.0.0.1", edge.settings.rest_port), timeout=15) as wire:
        wire.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n")
        raw_envelope(wire.recv(65536), "upgrade_refused")


@pytest.mark.parametrize(
    "request_text",
    [
        "POST {} HTTP/1.1\r\nhost: x\r\n",
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{{",
    ],
)
def test_slow_clients(hasty_edge: RunningEdge, request_text: str) -> None:
    raw_envelope(hasty_edge.raw(request_text.format(CANCEL).encode()), "request_timeout")


def test_slow_control_plane(hasty_edge: RunningEdge, stub: Stub) -> None:
    answer = httpx.post(f"{hasty_edge.rest_url}/v1/workspaces/slow/task/cancel", trust_env=False)
    envelope(answer, "deadline_exceeded")


def test_control_plane_is_down(lonely_edge: RunningEdge) -> None:
    for path in (CANCEL, "/v1/workspaces/ws_1/tasks/task_1/cancel"):
        answer = httpx.post(f"{lonely_edge.rest_url}{path}", trust_env=False)
        envelope(answer, "unavailable")
        assert answer.headers["retry-after"] == "1"
    envelope(httpx.get(f"{lonely_edge.rest_url}/v1/workspaces/ws_1/events", trust_env=False), "unavailable")


def test_http2_answers_have_no_internal_headers_or_trailers(edge: RunningEdge, stub: Stub) -> None:
    for workspace in ("ws_1", "error_workspace_not_found"):
        names = http2_names(edge, f"/v1/workspaces/{workspace}/task/cancel")
        assert b":status" in names
        assert not [name for name in names if name.startswith((b"grpc-", b"x-evershell-", b"x-envoy-"))]


def http2_names(edge: RunningEdge, path: str) -> list[bytes]:
    """The names of all headers and trailers of an answer; httpx does not show trailers."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    request = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x"), ("te", "trailers")]
    connection.send_headers(1, request, end_stream=True)
    names: list[bytes] = []
    with socket.create_connection(("127.0.0.1", edge.settings.rest_port), timeout=15) as wire:
        wire.sendall(connection.data_to_send())
        while data := wire.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    names += [name if isinstance(name, bytes) else name.encode() for name, _ in event.headers or []]
                if isinstance(event, h2.events.StreamEnded):
                    return names
            wire.sendall(connection.data_to_send())
    raise AssertionError("the answer did not end")


def test_access_log(edge: RunningEdge, stub: Stub) -> None:
    log = edge.settings.admin_socket.parent / "envoy.log"
    answer = httpx.get(f"{edge.rest_url}/v1/workspaces/ws_1/tasks?page_token=private", trust_env=False)
    request_id = answer.headers["x-request-id"]
    until(lambda: request_id in log.read_text())
    line = next(line for line in log.read_text().splitlines() if request_id in line)
    entry = json.loads(line)
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/v1/workspaces/ws_1/tasks", 200)
    assert "private" not in line
