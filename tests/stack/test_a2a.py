"""A2A over gRPC on a real stack, through Envoy."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from google.protobuf.json_format import MessageToDict

from tests.support.receivers import receiving
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

LIMIT_SECONDS = 60


@pytest.fixture
def stub(stack: Stack) -> Iterator[Any]:
    with grpc.insecure_channel(
        stack.ready["grpc_addr"], options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        yield a2a_pb2_grpc.A2AServiceStub(channel)


def options(workspace: Workspace) -> dict[str, Any]:
    """The arguments of each call: its metadata and its timeout."""
    token = workspace.stack.tokens["full_access"]
    metadata = (("authorization", f"Bearer {token}"), ("a2a-version", "1.0"))
    return {"metadata": metadata, "timeout": LIMIT_SECONDS}


def test_a_task_of_a2a_is_cancelled_while_it_is_watched(
    stub: Any, workspace: Workspace, gate: Gate
) -> None:
    """The task ends after its iteration, and the workspace then takes the next message."""
    call = options(workspace)

    def message(text: str) -> a2a_pb2.Message:
        parts = [a2a_pb2.Part(text=text)]
        return a2a_pb2.Message(message_id=text, role=a2a_pb2.ROLE_USER, parts=parts)

    stream = stub.SendStreamingMessage(
        a2a_pb2.SendMessageRequest(
            tenant=workspace.id, message=message(f"{gate.command}\necho never")
        ),
        **call,
    )
    task_id = next(stream).task.id
    workspace.await_phase(task_id, "tool_call")
    named: dict[str, Any] = {"tenant": workspace.id, "id": task_id}
    cancelled = stub.CancelTask(
        a2a_pb2.CancelTaskRequest(**named, metadata={"reason": "wrong branch"}), **call
    )
    assert cancelled.status.state == a2a_pb2.TASK_STATE_WORKING
    assert MessageToDict(cancelled.metadata)["cancel_reason"] == "wrong branch"
    gate.open()
    updates = list(stream)
    assert updates[-1].status_update.status.state == a2a_pb2.TASK_STATE_CANCELED
    with pytest.raises(grpc.RpcError) as refused:
        stub.CancelTask(a2a_pb2.CancelTaskRequest(**named), **call)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    listed = stub.ListTasks(
        a2a_pb2.ListTasksRequest(tenant=workspace.id, status=a2a_pb2.TASK_STATE_CANCELED), **call
    )
    assert [task.id for task in listed.tasks] == [task_id] and listed.total_size == 1
    answer = stub.SendMessage(
        a2a_pb2.SendMessageRequest(tenant=workspace.id, message=message("echo next")), **call
    )
    assert answer.task.status.state == a2a_pb2.TASK_STATE_COMPLETED
    assert answer.task.artifacts[0].parts[0].text == "Ran 1 command."


def test_a_cancellation_that_waits_sees_the_end(stub: Any, workspace: Workspace) -> None:
    task_id = workspace.submit("sleep 600")
    workspace.await_phase(task_id, "tool_call")
    request = a2a_pb2.CancelTaskRequest(
        tenant=workspace.id, id=task_id, metadata={"wait": "30s", "force_after": "0s"}
    )
    ended = stub.CancelTask(request, **options(workspace))
    assert ended.status.state == a2a_pb2.TASK_STATE_CANCELED


def test_the_end_is_pushed_to_the_address_of_a_message(stub: Any, workspace: Workspace) -> None:
    with receiving() as receiver:
        config = a2a_pb2.TaskPushNotificationConfig(
            url=receiver.url,
            token="token-1",
            authentication={"scheme": "Bearer", "credentials": "secret-1"},
        )
        request = a2a_pb2.SendMessageRequest(
            tenant=workspace.id,
            message=a2a_pb2.Message(
                message_id="m-1", role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(text="echo a")]
            ),
            configuration=a2a_pb2.SendMessageConfiguration(task_push_notification_config=config),
        )
        task = stub.SendMessage(request, **options(workspace)).task

        def last() -> Any:
            return receiver.requests and "task" in receiver.requests[-1].event

        eventually(last, LIMIT_SECONDS)
        pushed = [request.event for request in receiver.requests]
        assert pushed[-1]["task"]["id"] == task.id
        assert pushed[-1]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
        assert pushed[0]["statusUpdate"]["status"]["state"] == "TASK_STATE_SUBMITTED"
        for received in receiver.requests:
            assert received.headers["x-a2a-notification-token"] == "token-1"
            assert received.headers["authorization"] == "Bearer secret-1"
            assert received.headers["content-type"] == "application/a2a+json"
