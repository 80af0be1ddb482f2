"""The service without one of its two rooms (webhooks and A2A), or without both.

The tests use a copy of the checkout without the folders of these rooms and without their lines in
the registry.
"""

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
_PATHS = {
    "/v1/webhooks": "webhooks",
    "/a2a/ws_1/tasks/task_1": "a2a",
    "/a2a/ws_1/.well-known/agent-card.json": "a2a",
}
_CONFIG = a2a_pb2.TaskPushNotificationConfig(tenant="ws_1", task_id="task_1", url="https://a.b")


@pytest.fixture(scope="module", params=["webhooks", "a2a", "webhooks a2a"])
def removed(request: pytest.FixtureRequest) -> list[str]:
    rooms: list[str] = request.param.split()
    return rooms


@pytest.fixture(scope="module")
def stack(removed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("rooms")
    lines = [Edit(f"{_FEATURES}/registry.py", f'    "{room}",\n', "") for room in removed]
    checkout = copied_checkout(folder / "checkout", *lines)
    for room in removed:
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


def test_rest_does_not_find_the_paths_of_a_room(stack: Stack, removed: list[str]) -> None:
    for path, room in _PATHS.items():
        answer = stack.rest().client.get(path, headers={"a2a-version": "1.0"})
        # The errors of A2A have numbers instead of slugs.
        code = answer.json().get("error", {}).get("code")
        assert ((answer.status_code, code) == (404, "not_found")) is (room in removed), path


def test_the_methods_of_a_room_are_unimplemented(stack: Stack, removed: list[str]) -> None:
    with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
        service = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        a2a = a2a_pb2_grpc.A2AServiceStub(channel)
        listed: dict[str, tuple[Any, Any]] = {
            "webhooks": (service.ListWebhooks, workspace_service_pb2.ListWebhooksRequest()),
            "a2a": (a2a.GetTask, a2a_pb2.GetTaskRequest(tenant="ws_1", id="task_1")),
        }
        for room, (method, request) in listed.items():
            code, _ = _answer(stack, method, request)
            assert (code is grpc.StatusCode.UNIMPLEMENTED) is (room in removed), room
        if removed == ["webhooks"]:
            code, message = _answer(stack, a2a.CreateTaskPushNotificationConfig, _CONFIG)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert message.startswith("This service sends no push notifications.")


def _answer(stack: Stack, method: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    try:
        method(request, **_options(stack))
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), failed.details()
    return grpc.StatusCode.OK, ""


def _options(stack: Stack) -> dict[str, Any]:
    token = stack.tokens["full_access"]
    return {
        "metadata": (("authorization", f"Bearer {token}"), ("a2a-version", "1.0")),
        "timeout": 60,
    }
