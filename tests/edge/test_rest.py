"""What REST callers see: every answer is checked for the envelope and for what must not leak."""

import json
from typing import Any

import httpx
import pytest
from evershell.workspace.v1 import error_pb2

from .stub import AWKWARD, RunningEdge, Stub, rule

CANCEL = "/v1/workspaces/ws_1/task/cancel"
SLUGS = [value.name for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values if value.number]
SERVICE_SLUGS = [slug for slug in SLUGS if not rule(slug).edge_only]


def nothing_leaks(answer: httpx.Response) -> None:
    internal = [name for name in answer.headers if name.startswith(("grpc-", "x-evershell-", "x-envoy-"))]
    assert not internal
    for secret in ("secret", "127.0.0.1", "upstream"):
        assert secret not in answer.text


def envelope(answer: httpx.Response, slug: str) -> dict[str, Any]:
    """Checks an error answer in all that is common to them."""
    nothing_leaks(answer)
    assert answer.headers["content-type"] == "application/json", answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (rule(slug).http, slug), answer.text
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", CANCEL, None, 202),
        ("POST", CANCEL, {}, 202),
        ("POST", "/v1/workspaces/ws_1/tasks/task_9/cancel", None, 202),
        ("POST", "/v1/workspaces/ws_1/tasks/task_9/cancel", {}, 202),
        ("POST", CANCEL, {"reason": "größer", "wait": "1.5s", "force_after": "2s"}, 202),
        ("POST", "/v1/workspaces/ended/task/cancel", {"wait": "1s"}, 200),
        ("POST", "/v1/workspaces", {"name": "x"}, 201),
        ("POST", "/v1/workspaces/ws_1/tasks", {"description": "x", "metadata": {"a": "b"}}, 202),
        ("POST", "/v1/workspaces/ws_1/stop", None, 202),
        ("POST", "/v1/workspaces/ws_1/resume", None, 202),
        ("GET", "/v1/workspaces", None, 200),
        ("GET", "/v1/workspaces/ws_1/tasks/task_1", None, 200),
        ("GET", "/v1/workspaces/ws_1", None, 200),
        ("GET", "/v1/workspaces/ws_1/tasks?page_size=2&page_token=a%20workspace_id%3D", None, 200),
        # 20 MB, in HTTP and in gRPC.
        ("GET", "/v1/workspaces/ws_1/tasks?page_size=200", None, 200),
    ],
)
def test_success(rest: httpx.Client, stub: Stub, method: str, path: str, body: Any, status: int) -> None:
    answer = rest.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"
    assert isinstance(answer.json(), dict)
    nothing_leaks(answer)


def test_the_two_paths_of_a_cancellation(rest: httpx.Client, stub: Stub) -> None:
    shown = rest.post("/v1/workspaces/ws_1/tasks/task_9/cancel").json()
    assert (shown["workspace_id"], shown["task_id"], shown["outcome"]) == ("ws_1", "task_9", "accepted")
    assert shown["task"]["iterations"] == 0
    rest.post(CANCEL, json={"reason": "größer", "wait": "1.5s", "task_id": "task_8"})
    request = stub.seen[-1][0]
    assert (request.reason, request.task_id, request.wait.ToTimedelta().total_seconds()) == ("größer", "task_8", 1.5)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/merge-patch+json",
        # What curl sends with -d.
        "application/x-www-form-urlencoded",
    ],
)
def test_json_by_its_names(rest: httpx.Client, stub: Stub, content_type: str) -> None:
    assert rest.post(CANCEL, content=b'{"reason":"r"}', headers={"content-type": content_type}).status_code == 202
    assert stub.seen[-1][0].reason == "r"


def test_no_body_under_the_types_that_clients_add(rest: httpx.Client, stub: Stub) -> None:
    for content_type in ("application/x-www-form-urlencoded", "text/plain;charset=UTF-8"):
        headers = {"content-type": content_type, "content-length": "0"}
        assert rest.post(CANCEL, content=b"", headers=headers).status_code == 202


@pytest.mark.parametrize("slug", SERVICE_SLUGS)
def test_every_error_of_the_service(rest: httpx.Client, stub: Stub, slug: str) -> None:
    for answer in (
        rest.post(f"/v1/workspaces/error_{slug}/task/cancel"),
        rest.get(f"/v1/workspaces/error_{slug}"),
        rest.get(f"/v1/workspaces/error_{slug}/events"),
    ):
        error = envelope(answer, slug)
        assert error["message"] == AWKWARD
        assert error["details"] == {"n": 1}
        assert answer.headers["retry-after"] == "7"
        assert answer.headers.get("www-authenticate") == ("Bearer" if slug == "unauthenticated" else None)


@pytest.mark.parametrize(
    ("workspace", "slug"),
    [
        ("raise", "internal"),
        ("bare_1", "unavailable"),
        ("bare_2", "internal"),
        ("bare_4", "deadline_exceeded"),
        ("bare_5", "internal"),
        ("bare_8", "rate_limited"),
        ("bare_12", "internal"),
        ("bare_13", "internal"),
        ("bare_14", "unavailable"),
    ],
)
def test_refusals_of_the_library_under_the_service(rest: httpx.Client, stub: Stub, workspace: str, slug: str) -> None:
    envelope(rest.post(f"/v1/workspaces/{workspace}/task/cancel"), slug)


@pytest.mark.parametrize(
    "body",
    [
        b'{"reason": "x',
        b"[]",
        b"null",
        b'"text"',
        b"\x00",
        b'{"reason": 5}',
        b'{"task_id": {}}',
        b'{"wait": "soon"}',
        b'{"wait": 3}',
        b'{"reason": "\xff"}',
        b'{"reason": "x"} {}',
        b'{"reason": "x"} trailing',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b'{"workspace_id": "ws_2"}',
    ],
)
def test_bodies_that_cannot_be_read(rest: httpx.Client, stub: Stub, body: bytes) -> None:
    envelope(rest.post(CANCEL, content=body, headers={"content-type": "application/json"}), "validation_error")
    assert not stub.seen


@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("GET", "/", "not_found"),
        ("GET", "/v1/workspaces/", "not_found"),
        ("POST", "/v1/workspace/ws_1/task/cancel", "not_found"),
        ("POST", "/evershell.workspace.v1.WorkspaceService/CancelTask", "not_found"),
        ("POST", "/evershell.agent.v1.RuntimeService/Register", "not_found"),
        ("POST", "/v1/workspaces//task/cancel", "not_found"),
        ("GET", CANCEL, "method_not_allowed"),
        ("PUT", CANCEL, "method_not_allowed"),
        ("OPTIONS", CANCEL, "method_not_allowed"),
        ("TRACE", CANCEL, "method_not_allowed"),
        ("DELETE", "/v1/workspaces/ws_1", "method_not_allowed"),
        ("POST", f"{CANCEL}?task_idd=task_1", "validation_error"),
        ("POST", f"{CANCEL}?workspace_id=ws_2", "validation_error"),
        ("POST", f"{CANCEL}?workspace%5Fid=ws_2", "validation_error"),
        ("GET", "/v1/workspaces/ws_1?workspace_id=ws_2", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/tasks/t?workspaceId=ws_2", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/tasks/t?task_id=u", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/tasks?page_size=1&workspace_id=ws_2", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/tasks?workspace%5Fid=ws_2&page_size=1", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/tasks?workspace_id&page_size=1", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/events?afterr=1", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/events?after=x", "validation_error"),
        ("GET", "/v1/workspaces/ws_1%2Fx", "validation_error"),
        ("GET", "/v1/workspaces/ws_1%00", "validation_error"),
        ("GET", "/v1/workspaces/ws_1/../../..%2f", "validation_error"),
    ],
)
def test_paths_and_methods(rest: httpx.Client, stub: Stub, method: str, path: str, slug: str) -> None:
    answer = rest.request(method, path)
    envelope(answer, slug)
    if slug == "method_not_allowed":
        assert answer.headers["allow"] == ("GET, OPTIONS" if path.endswith("ws_1") else "OPTIONS, POST")
    assert not stub.seen


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc-web", "text/xml", "text/plain"]
)
def test_other_content_types(rest: httpx.Client, stub: Stub, content_type: str) -> None:
    envelope(rest.post(CANCEL, content=b"\0\0\0\0\0", headers={"content-type": content_type}), "unsupported_media_type")
    assert not stub.seen


def test_grpc_without_a_body_is_no_json_either(rest: httpx.Client, stub: Stub) -> None:
    envelope(rest.post(CANCEL, headers={"content-type": "application/grpc"}), "unsupported_media_type")
    envelope(rest.get("/v1/workspaces/ws_1", headers={"content-type": "application/grpc"}), "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_that_are_too_large(edge: RunningEdge, stub: Stub, chunked: bool) -> None:
    """Over HTTP/2 the edge answers alike and then resets the stream, which httpx takes for a failure while it still sends."""
    large = json.dumps({"reason": "x" * 1_100_000}).encode()
    content = iter([large[:600_000], large[600_000:]]) if chunked else large
    headers = {"content-type": "application/json"}
    envelope(httpx.post(f"{edge.rest_url}{CANCEL}", content=content, headers=headers, trust_env=False), "payload_too_large")
    assert not stub.seen


def test_head_has_no_body(rest: httpx.Client) -> None:
    answer = rest.head("/v1/workspaces/ws_1")
    assert (answer.status_code, answer.content) == (405, b"")
    nothing_leaks(answer)


def test_headers_that_are_refused(rest: httpx.Client, request: pytest.FixtureRequest) -> None:
    many = {f"x-{number}": "1" for number in range(200)}
    for headers, slug in (({"x_under": "score"}, "validation_error"), (many, "headers_too_large")):
        try:
            envelope(rest.post(CANCEL, headers=headers), slug)
        except httpx.RemoteProtocolError:
            # Envoy resets an HTTP/2 stream whose headers it does not accept.
            assert "HTTP/2" in request.node.name


def test_request_id_is_the_edges(rest: httpx.Client, stub: Stub) -> None:
    answer = rest.post(CANCEL, headers={"x-request-id": "chosen-by-the-client"})
    assert answer.headers["x-request-id"] != "chosen-by-the-client"
    assert stub.seen[-1][1]["x-request-id"] == answer.headers["x-request-id"]


def test_what_reaches_the_control_plane(rest: httpx.Client, stub: Stub) -> None:
    forged = {
        "x-evershell-edge": "forged",
        "x-evershell-status": "299",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-retry-on": "5xx",
        "grpc-timeout": "1m",
        "authorization": "Bearer t",
    }
    assert rest.post(CANCEL, headers=forged).status_code == 202
    metadata = stub.seen[-1][1]
    assert metadata["x-evershell-edge"] == "rest"
    assert metadata["x-evershell-host"] == rest.base_url.netloc.decode()
    assert metadata["authorization"] == "Bearer t"
    assert "x-evershell-status" not in metadata
    assert "grpc-timeout" not in metadata


def test_cors(rest: httpx.Client, stub: Stub) -> None:
    origin = {"origin": "https://app.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for path in (CANCEL, "/v1/workspaces"):
        preflight = rest.options(path, headers=origin | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
    for path in (CANCEL, "/v1/workspaces/error_workspace_not_found/task/cancel", "/nowhere"):
        answer = rest.post(path, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_healthz(rest: httpx.Client) -> None:
    answer = rest.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"")
    nothing_leaks(answer)


def test_stream_is_flushed_message_by_message(rest: httpx.Client, stub: Stub) -> None:
    with rest.stream("GET", "/v1/workspaces/ws_1/events?after=4") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        nothing = [name for name in answer.headers if name.startswith(("grpc-", "x-evershell-"))]
        assert not nothing
        lines = answer.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        assert first["event"]["seq"] == "5"
        assert not stub.release.is_set()
        stub.release.set()
        rest_of_it = [line for line in lines if line]
    last = json.loads(rest_of_it[-1].removeprefix("data: "))
    assert last["error"]["code"] == "unavailable"
    assert last["error"]["message"] == AWKWARD


def test_stream_that_breaks_ends_without_a_trace(rest: httpx.Client, stub: Stub) -> None:
    """Why the server says in the stream what went wrong."""
    answer = rest.get("/v1/workspaces/breaks/events")
    assert answer.status_code == 200
    assert answer.text.count("data: ") == 1
    nothing_leaks(answer)


def test_trailers_hold_nothing(edge: RunningEdge, stub: Stub) -> None:
    chunked = edge.raw(f"POST {CANCEL} HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close\r\n\r\n".encode())
    assert chunked.startswith(b"HTTP/1.1 202")
    assert b"grpc-status" not in chunked
    assert b"x-evershell" not in chunked
