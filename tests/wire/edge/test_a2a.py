"""A2A over HTTP and JSON: its paths, its JSON and its errors (sections 5 and 11 of A2A 1.0)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc

from tests.support.edge.answers import Answer
from tests.support.edge.cases import BARE_STATUSES, CANCEL_BYTES, USUAL_BYTES, of_size
from tests.support.edge.clients import Request, curl
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import AWKWARD, Stub

TASK = "/a2a/ws_1/tasks/task_1"
CANCEL = f"{TASK}:cancel"
SEND, STREAM = "/a2a/ws_1/message:send", "/a2a/ws_1/message:stream"
SUBSCRIBE = f"{TASK}:subscribe"
CONFIGS = f"{TASK}/pushNotificationConfigs"
CARD = "/a2a/ws_1/.well-known/agent-card.json"
MESSAGE: dict[str, Any] = {
    "messageId": "m_1",
    "role": "ROLE_USER",
    "parts": [{"text": "größer"}],
    "metadata": {"a": [1, None, {"b": True}]},
}
SENT = {"message": MESSAGE}


@dataclass(frozen=True)
class Success:
    """A request, and what the stub receives and answers."""

    sent: Request
    # Fields of the request that the worker receives, by their names in the proto.
    received: Mapping[str, Any]
    # A part of the answer.
    answered: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.sent.method} {self.sent.path} {(self.sent.body or b'').decode()[:40]}"


def get(path: str, **headers: str) -> Request:
    return Request("GET", path, None, headers)


def post(path: str, body: Any = None, kind: str = "application/a2a+json") -> Request:
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return Request("POST", path, content, {"content-type": kind} if content else {})


OF_TASK = {"tenant": "ws_1", "id": "task_1"}
TASK_JSON = {"id": "task_1", "contextId": "ws_1", "status": {"state": "TASK_STATE_WORKING"}}
OF_CONFIG = {"tenant": "ws_1", "task_id": "task_1", "id": "c_1"}
SUCCESSES = [
    Success(get(TASK), OF_TASK, TASK_JSON),
    Success(get("/a2a/tasks/task_1"), {"tenant": "", "id": "task_1"}),
    Success(get(f"{TASK}?historyLength=0"), OF_TASK | {"history_length": 0}),
    # Unknown fields and parameters are ignored (section 5.7).
    Success(get(f"{TASK}?other=1"), OF_TASK, TASK_JSON),
    Success(
        post(SEND, SENT | {"other": {"x": [1]}}),
        {"tenant": "ws_1"},
        {"task": TASK_JSON | {"history": [MESSAGE]}},
    ),
    Success(post(SEND, SENT, "application/json"), {"tenant": "ws_1"}),
    Success(post("/a2a/message:send", SENT), {"tenant": ""}),
    Success(post(CANCEL), OF_TASK, TASK_JSON),
    Success(post(CANCEL, {}), OF_TASK, TASK_JSON),
    Success(post("/a2a/tasks/task_1:cancel"), {"tenant": "", "id": "task_1"}),
    # The clients repeat the values of the path in the body.
    Success(
        post(CANCEL, OF_TASK | {"metadata": {"wait": "5s"}}),
        OF_TASK,
        TASK_JSON | {"metadata": {"wait": "5s"}},
    ),
    Success(
        get(
            "/a2a/ws_1/tasks?status=TASK_STATE_WORKING&pageSize=2&pageToken=a%26b&includeArtifacts=true"
            "&statusTimestampAfter=2026-01-02T03:04:05Z"
        ),
        {
            "tenant": "ws_1",
            "status": 2,
            "page_size": 2,
            "page_token": "a&b",
            "include_artifacts": True,
        },
        {"tasks": [], "nextPageToken": "", "pageSize": 2},
    ),
    Success(get("/a2a/tasks?tenant=ws_1"), {"tenant": "ws_1"}),
    Success(
        post(CONFIGS, {"url": "https://x.example", "authentication": {"scheme": "Bearer"}}),
        {"tenant": "ws_1", "task_id": "task_1", "url": "https://x.example"},
        {"taskId": "task_1", "authentication": {"scheme": "Bearer"}},
    ),
    Success(get(CONFIGS), {"tenant": "ws_1", "task_id": "task_1"}),
    Success(get(f"{CONFIGS}/c_1"), OF_CONFIG, {"taskId": "task_1", "id": "c_1"}),
    Success(Request("DELETE", f"{CONFIGS}/c_1"), OF_CONFIG),
    Success(get("/a2a/ws_1/extendedAgentCard"), {"tenant": "ws_1"}, {"name": "ws_1"}),
    Success(get(CARD), {"tenant": "ws_1"}, {"name": "ws_1"}),
]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("case", SUCCESSES, ids=str)
def test_a_call_reaches_the_service(
    edge: RunningEdge, stub: Stub, case: Success, http2: bool
) -> None:
    answer = curl(edge.rest_url, case.sent, http2=http2)
    assert answer.status == 200, answer
    assert answer.header("content-type") == "application/a2a+json"
    assert answer.header("cache-control") == "no-store"
    check_headers(answer)
    content = json.loads(answer.body)
    assert {name: content.get(name) for name in case.answered} == case.answered
    ((request, metadata),) = stub.seen
    assert {name: getattr(request, name) for name in case.received} == case.received
    assert ("x-evershell-public-card" in metadata) is (case.sent.path == CARD)


@pytest.mark.parametrize(
    ("sent", "version"),
    [
        (get(TASK, **{"a2a-version": "1.0"}), "1.0"),
        (get(f"{TASK}?A2A-Version=1.0"), "1.0"),
        (get(f"{TASK}?A2A-Version=0.3", **{"a2a-version": "1.0"}), "1.0"),
        (get(TASK), None),
    ],
)
def test_the_version_is_read_from_the_header_or_the_query(
    edge: RunningEdge, stub: Stub, sent: Request, version: str | None
) -> None:
    assert curl(edge.rest_url, sent).status == 200
    ((_, metadata),) = stub.seen
    assert metadata.get("a2a-version") == version


@pytest.mark.parametrize(
    "sent", [post(STREAM, SENT), post(SUBSCRIBE), get(SUBSCRIBE)], ids=lambda sent: sent.method
)
def test_a_stream_has_server_sent_events(edge: RunningEdge, stub: Stub, sent: Request) -> None:
    answer = curl(edge.rest_url, sent)
    assert (answer.status, answer.header("content-type")) == (200, "text/event-stream")
    events = answer.body.decode().split("\n\n")
    assert events.pop() == ""
    task, update = (json.loads(event.removeprefix("data: ")) for event in events)
    assert task["task"]["id"] == "task_1"
    assert update == {
        "statusUpdate": {
            "taskId": "task_1",
            "contextId": "ws_1",
            "status": {"state": "TASK_STATE_CANCELED"},
        }
    }


BAD = [
    post(SEND, b'{"message": '),
    post(SEND, b"[]"),
    post(SEND, {"message": {"messageId": 5}}),
    post(SEND, {"message": {"role": "ROLE_NOBODY"}}),
    post(SEND, b'{"message":{"messageId":"\xff"}}'),
    post(SEND, b'{"metadata":' + b'{"a":' * 2500 + b"1" + b"}" * 2501),
    post(CANCEL, {"id": "task_2"}),
    post(CANCEL, {"tenant": "ws_2"}),
    post(f"{CANCEL}?id=task_2"),
    post(f"{CANCEL}?tenant=ws_2"),
    post(f"{CANCEL}?%69d=task_2"),
    get(f"{TASK}?A2A-Version=1.0&tenant=ws_2"),
    get(f"{CONFIGS}/c_1?taskId=task_2"),
    get("/a2a/ws_1/tasks?pageSize=x"),
    get(TASK, **{"a2a-version": "ü"}),
    Request("GET", CANCEL.replace(":cancel", ""), b'{"id":"task_2"}'),
]
REFUSED = [
    *((sent, 400, "validation_error", None) for sent in BAD),
    *(
        (get(path), 404, "not_found", None)
        for path in ("/a2a/", "/a2a/ws_1", "/a2a/ws_1/x", "/a2a/ws_1/tasks/t/x", f"{TASK}:pause")
    ),
    (get(CANCEL), 405, "method_not_allowed", "OPTIONS, POST"),
    (get(SEND), 405, "method_not_allowed", "OPTIONS, POST"),
    (Request("DELETE", TASK), 405, "method_not_allowed", "GET, OPTIONS"),
    (Request("DELETE", CONFIGS), 405, "method_not_allowed", "GET, OPTIONS, POST"),
    (post(f"{CONFIGS}/c_1"), 405, "method_not_allowed", "DELETE, GET, OPTIONS"),
    (post(CARD), 405, "method_not_allowed", "GET, OPTIONS"),
    (post(SEND, SENT, "text/plain"), 415, "unsupported_media_type", None),
    (post(SEND, b"\0\0\0\0\0", "application/grpc"), 415, "unsupported_media_type", None),
    (post(SEND, of_size(USUAL_BYTES + 1, "x")), 413, "payload_too_large", None),
    (post(CANCEL, of_size(CANCEL_BYTES + 1, "x")), 413, "payload_too_large", None),
]


@pytest.mark.parametrize(
    ("sent", "status", "slug", "allow"),
    REFUSED,
    ids=[f"{row[0].method} {row[0].path} {n}" for n, row in enumerate(REFUSED)],
)
def test_the_edge_refuses_in_the_format_of_a2a(
    edge: RunningEdge, stub: Stub, sent: Request, status: int, slug: str, allow: str | None
) -> None:
    answer = curl(edge.rest_url, sent)
    assert answer.header("allow") == allow
    check_error(answer, status, slug)
    assert not stub.seen


@pytest.mark.parametrize("sent", [post(SEND, SENT), post(STREAM, SENT), get(TASK)], ids=str)
def test_without_a_worker_a_call_can_be_repeated(
    edge_without_workers: RunningEdge, sent: Request
) -> None:
    answer = curl(edge_without_workers.rest_url, sent)
    check_error(answer, 503, "unavailable")
    assert (answer.header("retry-after"), answer.header("x-should-retry")) == ("1", None)


@pytest.mark.parametrize(("number", "slug"), BARE_STATUSES.items())
def test_a_refusal_of_the_workers_library_shows_none_of_its_text(
    edge: RunningEdge, stub: Stub, number: int, slug: str
) -> None:
    sent = post(f"/a2a/bare_{number}/tasks/task_1:cancel")
    check_error(curl(edge.rest_url, sent), None, slug)


@pytest.mark.parametrize("path", ["tasks/task_1", "tasks/task_1:subscribe"])
def test_an_error_of_the_service_arrives_as_it_is(edge: RunningEdge, stub: Stub, path: str) -> None:
    answer = curl(edge.rest_url, get(f"/a2a/error_task_not_found/{path}"))
    check_headers(answer)
    assert (answer.status, answer.header("content-type")) == (404, "application/a2a+json")
    assert answer.header("retry-after") == "7"
    assert json.loads(answer.body)["error"]["message"] == AWKWARD


def test_a_missing_credential_is_answered_with_its_scheme(edge: RunningEdge, stub: Stub) -> None:
    answer = curl(edge.rest_url, get("/a2a/error_unauthenticated/tasks"))
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")


def test_a_preflight_allows_the_headers_of_a2a(edge: RunningEdge) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    answer = curl(edge.rest_url, Request("OPTIONS", SEND, None, asked))
    assert answer.status == 200
    assert "a2a-version" in (answer.header("access-control-allow-headers") or "")


def test_grpc_passes_the_service_and_limits_its_messages(edge: RunningEdge, stub: Stub) -> None:
    with grpc.insecure_channel(edge.grpc_address) as channel:
        service = a2a_pb2_grpc.A2AServiceStub(channel)
        assert service.GetTask(a2a_pb2.GetTaskRequest(tenant="ws_1", id="task_1")).id == "task_1"
        large = a2a_pb2.SendMessageRequest(tenant="x" * USUAL_BYTES)
        with pytest.raises(grpc.RpcError) as refused:
            service.SendMessage(large)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def check_headers(answer: Answer) -> None:
    names = [name for name, _ in (*answer.headers, *answer.trailers)]
    assert not [name for name in names if name.startswith(("grpc-", "x-evershell-", "x-envoy-"))]


def check_error(answer: Answer, status: int | None, slug: str) -> None:
    """The answer is a google.rpc.Status of the edge (https://google.aip.dev/193)."""
    check_headers(answer)
    assert status in (None, answer.status), answer
    assert answer.header("content-type") == "application/a2a+json"
    error = json.loads(answer.body)["error"]
    info, request = error["details"]
    assert error["code"] == answer.status
    assert error["status"] in grpc.StatusCode.__members__
    assert info == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": slug.upper(),
        "domain": "evershell.ai",
    }
    assert request["requestId"] == answer.header("x-request-id")
    assert len(error["message"]) > 10
    assert not [
        secret for secret in ("secret", "127.0.0.1", "upstream") if secret in error["message"]
    ]
