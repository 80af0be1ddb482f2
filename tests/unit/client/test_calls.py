"""What each call of the client sends, and how the client converts the answer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import (
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace
from opentelemetry.trace import TraceFlags

from evershell.client import (
    CancelOutcome,
    Client,
    ClientClosedError,
    SubmittedTask,
    Task,
    TaskPhase,
    TaskStatus,
    UnavailableError,
    Workspace,
    WorkspaceStatus,
)
from tests.unit.client.fake_channel import TIMEOUT_SECONDS, Service, start

Reply = workspace_service_pb2.CancelTaskResponse
AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
STAMP = Timestamp(seconds=1_700_000_000)
STOPPING = workspace_pb2.Workspace(id="ws_1", status=workspace_pb2.Workspace.stopping)


def test_a_plain_cancellation_sends_only_the_workspace_id(service: Service) -> None:
    call = start(service.client.cancel, "ws_1")
    request, taken = service.take("CancelTask")
    taken.answer(
        Reply(
            workspace_id="ws_1",
            task_id="task_1",
            outcome=Reply.accepted,
            requested_at=STAMP,
            requested_by="key_1",
            task=task_pb2.Task(
                id="task_1",
                workspace_id="ws_1",
                status=task_pb2.Task.running,
                phase=task_pb2.Task.tool_call,
                created_at=STAMP,
                metadata={"a": "b"},
            ),
        )
    )
    assert request == workspace_service_pb2.CancelTaskRequest(workspace_id="ws_1")
    assert service.metadata["authorization"] == "Bearer sk_secret"
    assert service.channel.timeouts == [TIMEOUT_SECONDS]
    result = call.result(5)
    assert (result.outcome, result.requested_at, result.requested_by, result.request_id) == (
        CancelOutcome.ACCEPTED,
        AT,
        "key_1",
        "request_1",
    )
    assert (result.is_recorded, result.is_over) == (True, False)
    assert result.task == Task(
        "task_1",
        "ws_1",
        status=TaskStatus.RUNNING,
        phase=TaskPhase.TOOL_CALL,
        created_at=AT,
        metadata={"a": "b"},
    )


def test_a_wait_extends_the_timeout_of_the_call(service: Service) -> None:
    start(
        service.client.cancel,
        "ws_1",
        "task_1",
        reason="why",
        wait=timedelta(seconds=12.5),
        force_after=0,
    )
    request, taken = service.take("CancelTask")
    taken.answer(Reply())
    assert request == workspace_service_pb2.CancelTaskRequest(
        workspace_id="ws_1",
        task_id="task_1",
        reason="why",
        wait=Duration(seconds=12, nanos=500_000_000),
        force_after=Duration(),
    )
    assert request.HasField("force_after")
    assert service.channel.timeouts == [TIMEOUT_SECONDS + 12.5]


@pytest.mark.parametrize(
    ("rpc", "call", "request_", "reply", "result"),
    [
        ("SubmitTask",
         lambda client: client.submit_task("ws_1", "true", metadata={"a": "b"}, max_iterations=3),
         {"workspace_id": "ws_1", "description": "true", "metadata": {"a": "b"},
          "max_iterations": 3},
         workspace_service_pb2.SubmitTaskResponse(task_id="task_1", workspace_id="ws_1",
                                                  status=task_pb2.Task.delivered),
         SubmittedTask("task_1", "ws_1", TaskStatus.DELIVERED)),
        ("CreateWorkspace", lambda client: client.create_workspace("mine"),
         {"name": "mine"}, workspace_pb2.Workspace(id="ws_1", name="mine"),
         Workspace("ws_1", name="mine")),
        ("StopWorkspace", lambda client: client.stop_workspace("ws_1"),
         {"workspace_id": "ws_1"}, STOPPING,
         Workspace("ws_1", status=WorkspaceStatus.STOPPING)),
    ],
)  # fmt: skip
def test_another_call_sends_its_request_and_returns_a_result(
    service: Service, rpc: str, call: Any, request_: dict[str, Any], reply: Any, result: Any
) -> None:
    made = start(call, service.client)
    request, taken = service.take(rpc)
    taken.answer(reply)
    assert request == getattr(workspace_service_pb2, f"{rpc}Request")(**request_)
    assert made.result(5) == result
    assert service.channel.timeouts == [TIMEOUT_SECONDS]


def test_items_are_listed_over_all_pages(service: Service) -> None:
    """A page without items is not the end of the list."""
    call = start(lambda: [task.id for task in service.client.list_tasks("ws_1", page_size=1)])
    tokens = []
    for ids, next_page_token in ((["task_2"], "token"), ([], "after_none"), (["task_1"], "")):
        request, taken = service.take("ListTasks")
        tokens.append(request.page_token)
        taken.answer(
            workspace_service_pb2.ListTasksResponse(
                tasks=[task_pb2.Task(id=id_) for id_ in ids], next_page_token=next_page_token
            )
        )
        assert request.page_size == 1
    assert call.result(5) == ["task_2", "task_1"]
    assert tokens == ["", "token", "after_none"]


def test_a_call_belongs_to_the_current_span(service: Service) -> None:
    span = trace.NonRecordingSpan(
        trace.SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    )
    with trace.use_span(span):
        headers = service.client._headers()
    assert dict(headers)["traceparent"] == f"00-{1:032x}-{2:016x}-01"
    assert "traceparent" not in dict(service.client._headers())


class CountingInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.count += 1
        return continuation(details, request)


def test_an_interceptor_sees_each_attempt() -> None:
    interceptor = CountingInterceptor()
    with (
        Client("127.0.0.1:1", "sk_secret", interceptors=[interceptor], max_retries=1) as client,
        pytest.raises(UnavailableError),
    ):
        client.get_workspace("ws_1")
    assert interceptor.count == 2


def test_a_call_of_a_closed_client() -> None:
    client = Client("127.0.0.1:1", "sk_secret")
    client.close()
    client.close()
    with pytest.raises(ClientClosedError):
        client.get_workspace("ws_1")
    with pytest.raises(ClientClosedError):
        next(client.watch("ws_1"))


def test_a_service_that_does_not_listen_is_unavailable() -> None:
    with (
        Client("127.0.0.1:1", "sk_secret") as client,
        pytest.raises(UnavailableError) as raised,
    ):
        client.cancel("ws_1")
    error = raised.value
    assert (error.code, error.request_id, error.http_status) == ("unavailable", "", 503)
    assert not error.is_from_service
    assert "Connection refused" in str(error)
