"""gRPC-Web on the REST listener: the calls of scripts in browsers, byte by byte."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tests.support.edge.answers import INTERNAL, SERVICE_SLUGS, rule
from tests.support.edge.stub import AWKWARD, Stub

SERVICE = "/evershell.workspace.v1.WorkspaceService"
TYPE = "application/grpc-web+proto"
CancelTaskRequest = workspace_service_pb2.CancelTaskRequest
# Sent by Connect's client for browsers.
HEADERS = {"content-type": TYPE, "x-grpc-web": "1", "x-user-agent": "connect-es/2.2.0"}
TRAILERS_FLAG = 0x80


@dataclass(frozen=True)
class Reply:
    """The messages of an answer, and its status, which is in the headers or in the last frame."""

    answer: httpx.Response
    messages: list[bytes]
    trailers: Mapping[str, str]

    @property
    def code(self) -> int:
        return int(self.trailers["grpc-status"])

    def details(self) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo]:
        """The rich status and its ErrorInfo. Checks the rich status against the plain one."""
        encoded = self.trailers["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
        assert (status.code, status.message) == (
            self.code,
            unquote(self.trailers["grpc-message"]),
        )
        info = error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in status.details)
        return status, info


def frame(message: Message) -> bytes:
    content = message.SerializeToString()
    return b"\0" + len(content).to_bytes(4, "big") + content


def read(answer: httpx.Response) -> Reply:
    """Parses an answer, and checks what all answers have in common."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == TYPE
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    messages, trailers = [], {}
    body = answer.content
    while body:
        flag, length = body[0], int.from_bytes(body[1:5], "big")
        content, body = body[5 : 5 + length], body[5 + length :]
        if flag & TRAILERS_FLAG:
            pairs = (line.partition(":") for line in content.decode().split("\r\n") if line)
            trailers = {name: value.strip() for name, _, value in pairs}
        else:
            messages.append(content)
    if not trailers:
        # A script can read only the headers that the answer exposes.
        trailers = {name: answer.headers[name] for name in exposed if name in answer.headers}
    for name in (*answer.headers, *trailers):
        assert not name.startswith(("x-evershell-", "x-envoy-")), name
        assert not name.startswith(INTERNAL) or name in exposed, name
    return Reply(answer, messages, trailers)


def call(
    rest: httpx.Client, method: str, request: Message, headers: Mapping[str, str] | None = None
) -> Reply:
    path = f"{SERVICE}/{method}"
    return read(rest.post(path, content=frame(request), headers={**HEADERS, **(headers or {})}))


def test_a_call_reaches_the_worker_as_grpc(rest: httpx.Client, stub: Stub) -> None:
    forged = {
        "x-evershell-edge": "rest",
        "x-evershell-status": "299",
        "x-request-id": "chosen",
        "authorization": "Bearer t",
    }
    reply = call(rest, "CancelTask", CancelTaskRequest(workspace_id="ws_1", reason="ö"), forged)
    (message,) = reply.messages
    answer = workspace_service_pb2.CancelTaskResponse.FromString(message)
    assert answer.outcome == workspace_service_pb2.CancelTaskResponse.accepted
    assert reply.code == 0
    request, metadata = stub.seen[-1]
    assert request.reason == "ö"
    # With this header, the worker would answer with the envelope of REST.
    assert "x-evershell-edge" not in metadata
    assert "x-evershell-status" not in metadata
    assert "x-evershell-content" not in metadata
    assert metadata["x-evershell-host"] == rest.base_url.netloc.decode()
    assert metadata["authorization"] == "Bearer t"
    assert metadata["x-request-id"] == reply.answer.headers["x-request-id"] != "chosen"


@pytest.mark.parametrize("slug", SERVICE_SLUGS)
@pytest.mark.parametrize("method", ["CancelTask", "WatchEvents"])
def test_an_error_has_its_status_and_details(
    rest: httpx.Client, stub: Stub, method: str, slug: str
) -> None:
    kind: Any = getattr(workspace_service_pb2, f"{method}Request")
    reply = call(rest, method, kind(workspace_id=f"error_{slug}"))
    assert (reply.code, reply.messages) == (rule(slug).grpc, [])
    assert unquote(reply.trailers["grpc-message"]) == AWKWARD
    assert reply.trailers["grpc-status-details-bin"]


def test_the_messages_of_a_stream_arrive_one_by_one(rest: httpx.Client, stub: Stub) -> None:
    request = workspace_service_pb2.WatchEventsRequest(workspace_id="ws_1")
    path = f"{SERVICE}/WatchEvents"
    with rest.stream("POST", path, content=frame(request), headers=HEADERS) as answer:
        parts = answer.iter_raw()
        first = next(parts)
        assert first[0] == 0
        stub.release.set()
        rest_of_it = b"".join(parts)
    assert AWKWARD.encode() in rest_of_it
    assert b"grpc-status:0" in rest_of_it


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", f"{SERVICE}/CancelTask", "application/grpc-web-text"),
        ("POST", f"{SERVICE}/CancelTask", "application/json"),
        ("GET", f"{SERVICE}/CancelTask", TYPE),
        ("POST", f"{SERVICE}/Nothing", TYPE),
        ("POST", "/evershell.agent.v1.RuntimeService/Register", TYPE),
        ("POST", "/grpc.health.v1.Health/Check", TYPE),
    ],
)
def test_everything_else_is_not_found(
    rest: httpx.Client, stub: Stub, method: str, path: str, kind: str
) -> None:
    body = None if method == "GET" else frame(CancelTaskRequest(workspace_id="ws_1"))
    answer = rest.request(method, path, content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert not stub.seen
