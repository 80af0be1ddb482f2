"""A2AService over gRPC, over a store in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2, a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.protobuf.json_format import MessageToDict

from evershell.core.task import Task
from evershell.core.workspace import Workspace
from tests.support.world import World, iteration
from tests.wire.api.running import READER, Failed, Running, bearer


def headers(token: str = "sk_test", **more: str) -> tuple[tuple[str, str], ...]:
    return bearer(token, a2a_version="1.0", **more)


@dataclass
class A2A:
    """The stub of A2A on a running server, with a task that runs."""

    running: Running
    stub: Any
    workspace: Workspace
    task: Task

    @property
    def world(self) -> World:
        return self.running.world

    @property
    def named(self) -> dict[str, Any]:
        return {"tenant": self.workspace.id, "id": self.task.id}

    async def get(self, **fields: Any) -> Any:
        request = a2a_pb2.GetTaskRequest(**{**self.named, **fields})
        return await self.stub.GetTask(request, metadata=headers())

    async def cancel(self, **metadata: Any) -> Any:
        request = a2a_pb2.CancelTaskRequest(**self.named, metadata=metadata)
        return await self.stub.CancelTask(request, metadata=headers())


@pytest.fixture
async def a2a(server: Running) -> AsyncIterator[A2A]:
    workspace, task = await server.world.add_busy()
    yield A2A(server, a2a_pb2_grpc.A2AServiceStub(server.channel), workspace, task)


def error_type(failed: Failed) -> str:
    """The error type of A2A that the call failed with."""
    info = failed.details["ErrorInfo"]
    assert info.domain == "a2a-protocol.org"
    assert info.metadata["slug"]
    return str(info.reason)


async def test_a_task_has_what_rest_shows(a2a: A2A) -> None:
    shown = await a2a.get()
    assert (shown.id, shown.context_id) == (a2a.task.id, a2a.workspace.id)
    assert shown.status.state == a2a_pb2.TASK_STATE_WORKING
    (request,) = shown.history
    assert (request.role, request.parts[0].text) == (a2a_pb2.ROLE_USER, a2a.task.description)
    rest = MessageToDict(
        await a2a.running.stub.GetTask(
            messages.GetTaskRequest(workspace_id=a2a.workspace.id, task_id=a2a.task.id),
            metadata=bearer(),
        ),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    for name in ("id", "description", "result"):
        del rest[name]
    assert MessageToDict(shown.metadata) == rest
    assert not (await a2a.get(history_length=0)).history


async def test_a_cancelled_task_works_until_its_end_is_committed(a2a: A2A) -> None:
    """A repeat meanwhile changes nothing. After the end, a task cannot be cancelled."""
    first = await a2a.cancel(reason="wrong branch")
    assert first.status.state == a2a_pb2.TASK_STATE_WORKING
    facts = MessageToDict(first.metadata)
    assert facts["cancel_requested_by"] == "key_full_access"
    assert facts["cancel_reason"] == "wrong branch"
    again = await a2a.cancel(reason="another reason")
    assert MessageToDict(again.metadata) == facts
    await a2a.world.end(a2a.workspace.id, a2a.task.id, result="partial")
    ended = await a2a.get()
    assert ended.status.state == a2a_pb2.TASK_STATE_CANCELED
    assert [part.text for part in ended.artifacts[0].parts] == ["partial"]
    refused = await a2a.running.fails(a2a.cancel())
    assert error_type(refused) == "TASK_NOT_CANCELABLE"
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.details["ErrorInfo"].metadata["status"] == "cancelled"


async def test_a_foreign_task_looks_like_none(a2a: A2A) -> None:
    foreign = await a2a.world.add(org_id="org_b")
    ids: list[dict[str, Any]] = [
        {"tenant": "ws_none", "id": a2a.task.id},
        {"tenant": foreign.id, "id": a2a.task.id},
        {"tenant": a2a.workspace.id, "id": "task_none"},
    ]
    for named in ids:
        request = a2a_pb2.GetTaskRequest(**named)
        refused = await a2a.running.fails(a2a.stub.GetTask(request, metadata=headers()))
        assert error_type(refused) == "TASK_NOT_FOUND"
        assert refused.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["", "0.3", "2.0", "1.1", "1.0.x"])
async def test_only_version_1_0_is_spoken(a2a: A2A, version: str) -> None:
    """Without the header, the version is 0.3."""
    metadata = bearer(a2a_version=version) if version else bearer()
    request = a2a_pb2.GetTaskRequest(**a2a.named)
    refused = await a2a.running.fails(a2a.stub.GetTask(request, metadata=metadata))
    assert error_type(refused) == "VERSION_NOT_SUPPORTED"
    await a2a.stub.GetTask(request, metadata=bearer(a2a_version="1.0.7"))


async def test_other_errors_keep_the_slug(a2a: A2A) -> None:
    request = a2a_pb2.CancelTaskRequest(**a2a.named)
    refused = await a2a.running.fails(a2a.stub.CancelTask(request, metadata=headers(READER)))
    info = refused.details["ErrorInfo"]
    assert (info.reason, info.domain) == ("PERMISSION_DENIED", "evershell.ai")
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_subscription_begins_with_the_task_and_ends_with_it(a2a: A2A) -> None:
    """Events of the log before the subscription are in the task."""
    await a2a.world.commit(a2a.workspace.id, a2a.task.id, iteration(1, content="I look"))
    stream = aiter(
        a2a.stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(**a2a.named), metadata=headers())
    )
    opening = await anext(stream)
    assert opening.task.id == a2a.task.id
    await a2a.world.commit(a2a.workspace.id, a2a.task.id, iteration(2, content="I see"))
    await a2a.cancel(reason="enough")
    await a2a.world.end(a2a.workspace.id, a2a.task.id, result="partial")
    updates = [update async for update in stream]
    spoken, cancelled, artifact, end = updates
    assert spoken.status_update.status.message.parts[0].text == "I see"
    assert MessageToDict(spoken.status_update.metadata)["iteration_completed"]["number"] == 2
    assert cancelled.status_update.status.state == a2a_pb2.TASK_STATE_WORKING
    assert artifact.artifact_update.artifact.parts[0].text == "partial"
    assert end.status_update.status.state == a2a_pb2.TASK_STATE_CANCELED
    assert end.status_update.context_id == a2a.workspace.id
    refused = await a2a.running.fails(
        a2a.stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(**a2a.named), metadata=headers())
    )
    assert error_type(refused) == "UNSUPPORTED_OPERATION"
