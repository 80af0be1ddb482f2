"""Server-Sent Events through Envoy, over HTTP/1.1 and HTTP/2."""

import json

import httpx
import pytest

from tests.support.edge.stub import AWKWARD, Stub


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
        # The stub holds the second message back until the first has arrived.
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


@pytest.mark.parametrize("after", [0, 1, 9223372036854775806])
def test_a_stream_resumes_after_any_position(rest: httpx.Client, stub: Stub, after: int) -> None:
    stub.release.set()
    answer = rest.get(f"/v1/workspaces/ws_1/events?after={after}")
    assert f"\nid: {after + 1}\n" in answer.text


def test_a_broken_stream_ends_without_an_error(rest: httpx.Client, stub: Stub) -> None:
    """The status of a stream does not reach REST callers, so servers send errors as messages."""
    answer = rest.get("/v1/workspaces/breaks/events")
    assert answer.status_code == 200
    assert answer.text.count("data: ") == 1
    assert "secret" not in answer.text
