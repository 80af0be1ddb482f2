"""A2A over HTTP and JSON: its paths, its JSON and its errors (sections 5 and 11 of A2A 1.0)."""

import json

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2 as messages
from evershell.workspace.v1.workspace_service_pb2_grpc import WorkspaceServiceStub

from tests.support.edge.a2a_cases import (
    CARD,
    REFUSED,
    SEND,
    SENT,
    STREAM,
    SUBSCRIBE,
    SUCCESSES,
    TASK,
    Success,
    get,
    post,
)
from tests.support.edge.answers import A2A_TYPE, Answer, check
from tests.support.edge.cases import BARE_STATUSES, USUAL_BYTES
from tests.support.edge.clients import Request, curl
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import AWKWARD, Stub
from tests.support.waiting import eventually


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("case", SUCCESSES, ids=str)
def test_a_call_reaches_the_service(
    edge: RunningEdge, stub: Stub, case: Success, http2: bool
) -> None:
    answer = curl(edge.rest_url, case.sent, http2=http2)
    assert answer.status == 200, answer
    assert answer.header("content-type") == A2A_TYPE
    assert answer.header("cache-control") == "no-store"
    assert check(answer) is None
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


@pytest.mark.parametrize(("path", "status"), [(TASK, 405), ("/a2a/ws_1/x", 404)])
def test_head_is_refused_without_a_body(
    edge: RunningEdge, stub: Stub, path: str, status: int
) -> None:
    """At the end, the fixture `edge` checks that no Lua script has failed."""
    assert curl(edge.rest_url, Request("HEAD", path)).status == status


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
    assert (answer.status, answer.header("content-type")) == (404, A2A_TYPE)
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


def check_error(answer: Answer, status: int | None, slug: str) -> None:
    """Checks that the answer is this error, in the format of A2A."""
    error = check(answer)
    assert error is not None
    assert status in (None, answer.status)
    assert answer.header("content-type") == A2A_TYPE
    assert error["code"] == slug


def test_a_call_over_grpc_may_be_silent_for_an_hour(
    stub: Stub, _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SendMessage and the streams are silent during an iteration, for longer than other calls."""
    soon = {"stream_idle_timeout: 300s": "stream_idle_timeout: 1s"}
    with (
        running_edge(
            short_directory(tmp_path_factory), _stub_and_address[1], replacements=soon
        ) as edge,
        grpc.insecure_channel(edge.grpc_address) as channel,
    ):
        request = a2a_pb2.SendMessageRequest(tenant="waits")
        sent = a2a_pb2_grpc.A2AServiceStub(channel).SendMessage.future(request, timeout=60)
        eventually(lambda: stub.seen)
        other = WorkspaceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as cut:
            other.CancelTask(messages.CancelTaskRequest(workspace_id="waits"), timeout=60)
        assert "did not answer in time" in str(cut.value.details())
        stub.release.set()
        assert sent.result().task.id == "task_1"
