"""A service whose rooms were removed: their folders, and their lines in the registry."""

import shutil
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc

from tests.support.checkout import Edit, copied_checkout
from tests.support.stack import Gate, Stack, Workspace

_FEATURES = "server/evershell/features"
_ROOMS = ("webhooks", "a2a")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("rooms")
    lines = [Edit(f"{_FEATURES}/registry.py", f'    "{room}",\n', "") for room in _ROOMS]
    checkout = copied_checkout(folder / "checkout", *lines)
    for room in _ROOMS:
        shutil.rmtree(checkout / _FEATURES / room)
    made = Stack(folder / "state")
    made.checkout = checkout
    with made.started():
        yield made


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_a_task_is_cancelled(stack: Stack, wire: str) -> None:
    workspace = Workspace(stack)
    gate = Gate(workspace)
    task_id = workspace.begin(gate.command)
    if wire == "rest":
        assert workspace.cancel(task_id=task_id)["outcome"] == "accepted"
    else:
        request = workspace_service_pb2.CancelTaskRequest(
            workspace_id=workspace.id, task_id=task_id
        )
        with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
            service = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
            answer = service.CancelTask(request, **_options(stack))
        assert answer.outcome == workspace_service_pb2.CancelTaskResponse.accepted
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


@pytest.mark.parametrize(
    "path", ["/v1/webhooks", "/a2a/ws_1/tasks/task_1", "/a2a/ws_1/.well-known/agent-card.json"]
)
def test_rest_does_not_find_the_paths_of_a_room(stack: Stack, path: str) -> None:
    answer = stack.rest().client.get(path, headers={"a2a-version": "1.0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_the_methods_of_a_room_are_unimplemented(stack: Stack) -> None:
    with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
        service = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        a2a = a2a_pb2_grpc.A2AServiceStub(channel)
        listed: list[tuple[Any, Any]] = [
            (service.ListWebhooks, workspace_service_pb2.ListWebhooksRequest()),
            (a2a.GetTask, a2a_pb2.GetTaskRequest(tenant="ws_1", id="task_1")),
        ]
        for method, request in listed:
            with pytest.raises(grpc.RpcError) as raised:
                method(request, **_options(stack))
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _options(stack: Stack) -> dict[str, Any]:
    token = stack.tokens["full_access"]
    return {
        "metadata": (("authorization", f"Bearer {token}"), ("a2a-version", "1.0")),
        "timeout": 60,
    }
