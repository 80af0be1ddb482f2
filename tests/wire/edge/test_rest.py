"""What a REST call sends to a worker, and what its caller gets from an answer and from a stream."""

import json

import httpx
import pytest

from tests.support.edge.cases import CANCEL
from tests.support.edge.running_edge import RunningEdge
from tests.support.edge.stub import AWKWARD, Stub


def test_both_paths_of_a_cancellation_reach_the_worker(rest: httpx.Client, stub: Stub) -> None:
    answer = rest.post("/v1/workspaces/ws_1/tasks/task_9/cancel").json()
    assert (answer["workspace_id"], answer["task_id"], answer["outcome"]) == (
        "ws_1",
        "task_9",
        "accepted",
    )
    assert answer["task"]["iterations"] == 0
    rest.post(CANCEL, json={"reason": "größer", "wait": "1.5s", "task_id": "task_8"})
    request = stub.seen[-1][0]
    assert (request.reason, request.task_id, request.wait.ToTimedelta().total_seconds()) == (
        "größer",
        "task_8",
        1.5,
    )


def test_the_edge_chooses_the_request_id(rest: httpx.Client, stub: Stub) -> None:
    answer = rest.post(CANCEL, headers={"x-request-id": "chosen-by-the-client"})
    assert answer.headers["x-request-id"] != "chosen-by-the-client"
    assert stub.seen[-1][1]["x-request-id"] == answer.headers["x-request-id"]


def test_a_caller_cannot_set_internal_headers(rest: httpx.Client, stub: Stub) -> None:
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


def test_a_wrong_parameter_of_a_query_is_named(rest: httpx.Client) -> None:
    error = rest.get("/v1/workspaces/ws_1/tasks?page_size=x%22%7D").json()["error"]
    assert error["details"] == {"fields": {"page_size": 'invalid value "x"}" for type TYPE_INT32'}}
    for name in ("pageSizee", "x-y"):
        error = rest.get(f"/v1/workspaces/ws_1/tasks?page_size=1&{name}=1").json()["error"]
        assert error["details"] == {"fields": {name: "unknown field"}}
    assert "error" not in rest.head("/v1/workspaces/ws_1/tasks?page_size=x").text


@pytest.mark.parametrize("workspace_id", ["ws_1", "error_workspace_not_found"])
def test_the_answer_to_head_has_the_length_and_not_the_body(
    edge: RunningEdge, workspace_id: str
) -> None:
    path = f"/v1/workspaces/{workspace_id}"
    # Over HTTP/2, the client fails if it receives a body. Over HTTP/1.1, it would not notice the
    # body.
    with httpx.Client(
        base_url=edge.rest_url, http1=False, http2=True, trust_env=False, timeout=15
    ) as client:
        to_get, to_head = client.get(path), client.head(path)
    assert to_head.content == b""
    assert to_head.status_code == to_get.status_code
    assert to_head.headers["content-length"] == str(len(to_get.content))


def test_messages_of_a_stream_arrive_one_by_one(rest: httpx.Client, stub: Stub) -> None:
    with rest.stream("GET", "/v1/workspaces/ws_1/events?after=4") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert not [
            name
            for name in answer.headers
            if name.startswith(("grpc-", "x-evershell-", "x-envoy-"))
        ]
        lines = answer.iter_lines()
        # The stub holds back the second message until the first message has arrived.
        assert [next(lines) for _ in range(2)] == ["retry: 1000", "event: task_started"]
        first = json.loads(next(lines).removeprefix("data: "))
        assert first["event"]["seq"] == "5"
        assert [next(lines) for _ in range(2)] == ["id: 5", ""]
        assert not stub.release.is_set()
        stub.release.set()
        kind, data = [line for line in lines if line]
    assert kind == "event: stream_error"
    last = json.loads(data.removeprefix("data: "))
    assert last["error"]["code"] == "unavailable"
    assert last["error"]["message"] == AWKWARD


def test_a_broken_stream_ends_without_an_error(rest: httpx.Client, stub: Stub) -> None:
    """Once a stream has begun, its gRPC status does not reach REST callers.

    Here, the stub breaks the stream without a last message that says the error.
    """
    answer = rest.get("/v1/workspaces/breaks/events")
    assert answer.status_code == 200
    assert answer.text.count("data: ") == 1
    assert "secret" not in answer.text
