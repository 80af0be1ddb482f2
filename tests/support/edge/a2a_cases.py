"""Requests of A2A over HTTP and JSON, and how the edge handles them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.edge.cases import CANCEL_BYTES, USUAL_BYTES, of_size
from tests.support.edge.clients import Request

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
    """A request that succeeds, what the stub receives, and what the client gets."""

    sent: Request
    # The fields of the request that the stub receives, by their names in the proto.
    received: Mapping[str, Any]
    # Fields of the answer that the client gets.
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
    # A2A ignores unknown fields and parameters (section 5.7).
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
    # A2A clients repeat values of the path in the body.
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
    get(f"{TASK}?A2A-Version=1.0%0D%0Aa:b"),
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
