"""AgentService: admits the calls of the control plane to the agent, and serves them."""

import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, cast

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
from google.protobuf.message import DecodeError

from evershell.agents.session import Session, WrongTaskError
from evershell.core.trace import HEADER, TraceContext
from evershell.pod.tokens import accepted_minutes, minute_of, secret_of, signal_token

Context = grpc.aio.ServicerContext[Any, Any]
# Quoted: grpcio's class is generic only in its type stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_UNPARSABLE = "The request cannot be parsed as a message of this method's request type."


class InvalidTokenError(Exception):
    """The token is not valid. The text says why."""


class TokenVerifier:
    """Verifies signal tokens (pod/tokens.py).

    Accepts the token of the current minute, and those of the minutes before and after it, because
    the clocks of the two hosts may differ. A token is therefore accepted for three minutes by the
    clock of the agent.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        """`secret` is in hexadecimal digits. Raises ValueError if it is not a signal secret."""
        self._secret = secret_of(secret)
        self._clock = clock
        self._minute: int | None = None
        # The values of `authorization` that are accepted in this minute.
        self._accepted: tuple[bytes, ...] = ()

    def verify(self, authorization: str) -> None:
        """Takes the value of the `authorization` header. Raises InvalidTokenError."""
        now = self._clock()
        if minute_of(now) != self._minute:
            self._minute, self._accepted = minute_of(now), self._accepted_at(now)
        presented = authorization.encode(errors="replace")
        if not any(hmac.compare_digest(presented, accepted) for accepted in self._accepted):
            raise InvalidTokenError(
                "A bearer token is needed: the signal token of this workspace, epoch and minute."
            )

    def _accepted_at(self, now: float) -> tuple[bytes, ...]:
        return tuple(
            f"Bearer {signal_token(self._secret, minute)}".encode()
            for minute in accepted_minutes(now)
        )


class Admission(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token and requests that cannot be parsed.

    Parses the request itself. gRPC would parse it before the token is verified, and would answer
    with the exception's text.
    """

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the method's handler. All methods of the agent are unary."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        assert handler.unary_unary is not None and handler.request_deserializer is not None
        parse = handler.request_deserializer
        serve = cast(Callable[[Any, Context], Awaitable[Any]], handler.unary_unary)

        async def admitted(request: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            try:
                self._verifier.verify(str(metadata.get("authorization", "")))
            except InvalidTokenError as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            try:
                message = parse(request)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _UNPARSABLE)
            return await serve(message, context)

        return grpc.unary_unary_rpc_method_handler(
            admitted, response_serializer=handler.response_serializer
        )


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
