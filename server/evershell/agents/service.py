"""AgentService: verifies tokens, acknowledges signals, and reports running calls."""

import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice
from typing import Any, TypeAlias

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import (
    Acknowledgement,
    CurrentIteration,
    GetCurrentIterationRequest,
    Signal,
)
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceServicer
from evershell.workspace.v1.task_pb2 import RunningCall

from evershell.agents.session import Session
from evershell.agents.step import storable_text
from evershell.agents.tools import storable
from evershell.core.trace import TraceContext
from evershell.pod.messages import (
    MAX_ARGUMENTS_BYTES,
    MAX_LAST_OUTPUT_BYTES,
    MAX_NAME_BYTES,
    MAX_RUNNING_CALLS,
    encode_phase,
    last_bytes,
)
from evershell.pod.tokens import accepted_minutes, minute_of, secret_of, signal_token

Context = grpc.aio.ServicerContext[Any, Any]
Acknowledge: TypeAlias = Callable[[Signal], Awaitable[Acknowledgement]]


class InvalidTokenError(Exception):
    """The token is not valid. The text says why."""


class TokenVerifier:
    """Verifies signal tokens (pod/tokens.py).

    Accepts the tokens of the current, the previous and the next minute, because the clocks of the
    two hosts may differ. A token is therefore accepted for three minutes by the clock of the agent.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        """`secret` is in hexadecimal digits. Raises ValueError if it is not a signal secret."""
        self._secret = secret_of(secret)
        self._clock = clock
        self._minute: int | None = None
        # The tokens that are accepted in this minute.
        self._accepted: tuple[bytes, ...] = ()

    def verify(self, token: str) -> None:
        """Raises InvalidTokenError."""
        now = self._clock()
        if minute_of(now) != self._minute:
            self._minute, self._accepted = minute_of(now), self._accepted_at(now)
        presented = token.encode(errors="replace")
        if not any(hmac.compare_digest(presented, accepted) for accepted in self._accepted):
            raise InvalidTokenError(
                "The signal token of this workspace, epoch and minute is needed."
            )

    def _accepted_at(self, now: float) -> tuple[bytes, ...]:
        return tuple(
            signal_token(self._secret, minute).encode() for minute in accepted_minutes(now)
        )


class AgentService(AgentServiceServicer):
    """Implements the service in agent_service.proto, which states the contract."""

    def __init__(self, verifier: TokenVerifier, acknowledge: Acknowledge, session: Session) -> None:
        self._verifier = verifier
        self._acknowledge = acknowledge
        self._session = session

    async def Signals(
        self, request_iterator: AsyncIterator[Signal], context: Context
    ) -> AsyncIterator[Acknowledgement]:
        """Serves one stream."""
        await self._admit(context)
        async for signal in request_iterator:
            await self._verify(signal.token, context)
            yield await self._acknowledge(signal)

    async def GetCurrentIteration(
        self, request: GetCurrentIterationRequest, context: Context
    ) -> CurrentIteration:
        await self._admit(context)
        return current_iteration(self._session, request.task_id)

    async def _admit(self, context: Context) -> None:
        """Verifies the token of the call."""
        metadata = dict(context.invocation_metadata() or ())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        await self._verify(token if scheme == "Bearer" else "", context)

    async def _verify(self, token: str, context: Context) -> None:
        try:
            self._verifier.verify(token)
        except InvalidTokenError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))


def current_iteration(session: Session, task_id: str) -> CurrentIteration:
    """The running calls of the task, with keys removed; empty if the task is not current."""
    task = session.task
    if task is None or task.id != task_id:
        return CurrentIteration()
    now = time.monotonic()
    return CurrentIteration(
        number=task.iterations + 1,
        calls=[
            RunningCall(
                phase=encode_phase(call.phase),
                name=storable_text(call.name(), MAX_NAME_BYTES),
                arguments=storable_text(call.arguments, MAX_ARGUMENTS_BYTES),
                duration_ms=round((now - call.began) * 1000),
                output=last_bytes(storable(call.output()), MAX_LAST_OUTPUT_BYTES),
            )
            for call in islice(task.calls.values(), MAX_RUNNING_CALLS)
        ],
    )


async def acknowledge(session: Session, signal: Signal) -> Acknowledgement:
    """Passes the signal to the session. Does not wait for its effect."""
    context = TraceContext.parse(signal.traceparent)
    is_known = False
    if signal.start_task.task_id:
        is_known = session.start(signal.start_task, context)
    elif signal.cancel_task.task_id:
        cancel = signal.cancel_task
        is_known = session.cancel(cancel.task_id, cancel.cancellation, context)
    return Acknowledgement(
        id=signal.id, known=is_known, task_id=session.task_id, phase=encode_phase(session.phase)
    )
