"""Calls of A2AService."""

from dataclasses import dataclass
from typing import Any

from a2a.types import a2a_pb2

from evershell.core.task import Task
from evershell.core.workspace import Workspace
from tests.support.world import World
from tests.wire.api.running import Failed, Running, bearer


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


def error_type(failed: Failed) -> str:
    """The error type of A2A that the call failed with."""
    info = failed.details["ErrorInfo"]
    assert info.domain == "a2a-protocol.org"
    assert info.metadata["slug"]
    return str(info.reason)


def message(text: str = "true", **fields: Any) -> a2a_pb2.Message:
    facts = {"message_id": "m-1", "role": a2a_pb2.ROLE_USER, "parts": [{"text": text}], **fields}
    return a2a_pb2.Message(**facts)


def sending(workspace_id: str, **fields: Any) -> a2a_pb2.SendMessageRequest:
    facts = {
        "tenant": workspace_id,
        "message": message(),
        "configuration": {"return_immediately": True},
        **fields,
    }
    return a2a_pb2.SendMessageRequest(**facts)
