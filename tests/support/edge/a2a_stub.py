"""The A2AService of the stub. The tenant of a request decides what the stub does."""

import json
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

import grpc
from a2a.types import a2a_pb2, a2a_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.empty_pb2 import Empty

from evershell.api.handlers import Methods

_WORKING = a2a_pb2.TaskStatus(state=a2a_pb2.TASK_STATE_WORKING)
_CANCELED = a2a_pb2.TaskStatus(state=a2a_pb2.TASK_STATE_CANCELED)


class Actor(Protocol):
    """The part of the stub that every A2A method calls first."""

    async def act(self, request: Any, context: Any) -> None:
        """Fails or waits if the name of the tenant says so, as `Stub` describes."""


def register(actor: Actor, methods: Methods) -> None:
    """Adds the methods of A2AService to the methods of the stub."""
    stub = _A2AStub(actor)
    a2a_pb2_grpc.add_A2AServiceServicer_to_server(cast(Any, stub), cast(grpc.aio.Server, methods))
    methods["/lf.a2a.v1.A2AService/ListTasks"] = grpc.unary_unary_rpc_method_handler(
        cast(Any, stub.ListTasks),
        a2a_pb2.ListTasksRequest.FromString,
        cast(Any, lambda message: message.SerializeToString()),
    )


class _A2AStub:
    def __init__(self, actor: Actor) -> None:
        self._act = actor.act

    async def SendMessage(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return a2a_pb2.SendMessageResponse(task=_task("task_1", request.tenant, request.message))

    async def SendStreamingMessage(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._act(request, context)
        for response in _stream("task_1", request.tenant, request.message):
            yield response

    async def SubscribeToTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._act(request, context)
        for response in _stream(request.id, request.tenant):
            yield response

    async def GetTask(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return _task(request.id, request.tenant)

    async def ListTasks(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        page = {"tasks": [], "nextPageToken": "", "pageSize": request.page_size, "totalSize": 0}
        return HttpBody(content_type="application/a2a+json", data=json.dumps(page).encode())

    async def CancelTask(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        task = _task(request.id, request.tenant)
        task.metadata.CopyFrom(request.metadata)
        return task

    async def CreateTaskPushNotificationConfig(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return request

    async def GetTaskPushNotificationConfig(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return a2a_pb2.TaskPushNotificationConfig(id=request.id, task_id=request.task_id)

    async def ListTaskPushNotificationConfigs(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return a2a_pb2.ListTaskPushNotificationConfigsResponse()

    async def DeleteTaskPushNotificationConfig(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return Empty()

    async def GetExtendedAgentCard(self, request: Any, context: Any) -> Any:
        await self._act(request, context)
        return a2a_pb2.AgentCard(name=request.tenant)


def _task(task_id: str, tenant: str, *history: Any) -> Any:
    return a2a_pb2.Task(id=task_id, context_id=tenant, status=_WORKING, history=history)


def _stream(task_id: str, tenant: str, *history: Any) -> list[Any]:
    update = a2a_pb2.TaskStatusUpdateEvent(task_id=task_id, context_id=tenant, status=_CANCELED)
    return [
        a2a_pb2.StreamResponse(task=_task(task_id, tenant, *history)),
        a2a_pb2.StreamResponse(status_update=update),
    ]
