"""AgentService: the calls of the control plane to the agent."""

from typing import Any, NoReturn

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import (
    CancelTaskRequest,
    CancelTaskResponse,
    GetSessionRequest,
    GetSessionResponse,
    StartTaskRequest,
    StartTaskResponse,
)
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceServicer

from evershell.agents.session import Session, WrongTaskError
from evershell.core.trace import HEADER, TraceContext

Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(AgentServiceServicer):
    """Each method decodes, calls the session, encodes. agent_service.proto has their contracts.

    The Admission interceptor has verified the token of each call.
    """

    def __init__(self, session: Session, workspace_id: str, epoch: int) -> None:
        self._session = session
        self._workspace_id = workspace_id
        self._epoch = epoch

    async def StartTask(self, request: StartTaskRequest, context: Context) -> StartTaskResponse:
        """Accepts the task. The reply does not wait for its start."""
        await self._check(context, request.workspace_id, request.epoch)
        if not request.task.task_id:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "The request names no task.")
        try:
            self._session.start(request.task, _trace(context))
        except WrongTaskError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return StartTaskResponse()

    async def CancelTask(self, request: CancelTaskRequest, context: Context) -> CancelTaskResponse:
        """Sets the task's cancel flag. The reply does not wait for the iteration."""
        await self._check(context, request.workspace_id, request.epoch)
        if not request.task_id:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "The request names no task.")
        return CancelTaskResponse(
            known=self._session.cancel(request.task_id, request.cancellation, _trace(context))
        )

    async def GetSession(self, request: GetSessionRequest, context: Context) -> GetSessionResponse:
        """Returns the current state of the agent."""
        await self._check(context, request.workspace_id, self._epoch)
        task = self._session.task
        if task is None:
            return GetSessionResponse(epoch=self._epoch)
        return GetSessionResponse(
            epoch=self._epoch,
            task_id=task.id,
            phase=str(task.phase),
            iterations=task.iterations,
            cancel_requested=task.cancel.is_requested,
        )

    async def _check(self, context: Context, workspace_id: str, epoch: int) -> None:
        if workspace_id != self._workspace_id or epoch != self._epoch:
            message = f"This is the agent of workspace {self._workspace_id} in epoch {self._epoch}."
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, message)


def _trace(context: Context) -> TraceContext | None:
    metadata = dict(context.invocation_metadata() or ())
    return TraceContext.parse(str(metadata.get(HEADER, "")))


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort always raises")
