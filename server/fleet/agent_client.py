"""The gRPC client with which the control plane calls agents.

A call is retried within one time budget, so a caller waits at most 2 s for an agent that has ended,
is frozen or is slow. Channels are kept between calls.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import structlog
from evershell.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from server.auth.pod_tokens import PodTokens
from server.core import deadline, trace
from server.core.errors import AgentUnreachableError
from server.core.task import Task
from server.core.workspace import Workspace
from server.pod.messages import encode_assignment, encode_cancellation

log = structlog.get_logger()

# The time for all attempts of a call, less if the caller's deadline is earlier. The port Agents
# promises an answer within 2 s.
SIGNAL_BUDGET_SECONDS = 1.8
_ATTEMPT_SECONDS = 0.6
_MAX_BACKOFF_SECONDS = 0.3

_CHANNEL_OPTIONS = (
    # Agents are on this network, so a proxy that the environment names is not used.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default of 1 s and more would leave no time in the budget for a reconnection to an
    # agent that has recovered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

# Exists only in the type stubs. At run time, AgentServiceStub serves asynchronous calls too.
Stub: TypeAlias = "agent_service_pb2_grpc.AgentServiceAsyncStub"
# Makes one attempt. Takes the stub, and the options of the call as keywords.
Attempt = Callable[..., Awaitable[object]]


class AgentClient:
    """Implements ports.Agents over gRPC."""

    def __init__(self, pod_tokens: PodTokens) -> None:
        self._pod_tokens = pod_tokens
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        # An agent that refuses is treated as unreachable: it has a task that the database does not
        # know of.
        request = agent_service_pb2.StartTaskRequest(
            workspace_id=workspace.id, epoch=workspace.epoch, task=encode_assignment(task)
        )
        await self._call(workspace, lambda stub, **options: stub.StartTask(request, **options))

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        request = agent_service_pb2.CancelTaskRequest(
            workspace_id=workspace.id,
            epoch=workspace.epoch,
            task_id=task.id,
            cancellation=encode_cancellation(task),
        )
        answer = await self._call(
            workspace, lambda stub, **options: stub.CancelTask(request, **options)
        )
        assert isinstance(answer, agent_service_pb2.CancelTaskResponse)
        return answer.known

    async def aclose(self) -> None:
        """Closes every channel."""
        await asyncio.gather(
            *(channel.close() for channel in self._channels.values()), *self._closing
        )
        self._channels.clear()

    async def _call(self, workspace: Workspace, attempt: Attempt) -> object:
        address = workspace.agent_address
        if address is None:
            raise AgentUnreachableError(f"the agent of {workspace.id} has not registered")
        until = time.monotonic() + deadline.bounded(SIGNAL_BUDGET_SECONDS)
        metadata = [("authorization", f"Bearer {self._pod_tokens.signal_token(workspace.id)}")]
        if (context := trace.current()) is not None:
            metadata.append((trace.HEADER, context.traceparent))
        options = {"metadata": tuple(metadata)}
        try:
            # Nearly every call succeeds at once, so the retries are set up only after a failure.
            return await attempt(self._stub(address), timeout=_attempt_seconds(until), **options)
        except grpc.aio.AioRpcError:
            return await self._retry(address, attempt, until, options)

    async def _retry(
        self, address: str, attempt: Attempt, until: float, options: dict[str, Any]
    ) -> object:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(grpc.aio.AioRpcError),
            wait=wait_random_exponential(multiplier=0.05, max=_MAX_BACKOFF_SECONDS),
            stop=stop_before_delay(until - time.monotonic()),
        )
        try:
            async for again in retrying:
                with again:
                    return await attempt(
                        self._stub(address), timeout=_attempt_seconds(until), **options
                    )
        except RetryError as error:
            log.warning("agent_unreachable", address=address, error=repr(error.__cause__ or error))
            self._forget(address)
            raise AgentUnreachableError(f"the agent at {address} does not answer") from error
        raise AssertionError("retrying ends with an answer or an error")

    def _stub(self, address: str) -> "Stub":
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(
                address, options=_CHANNEL_OPTIONS
            )
        return agent_service_pb2_grpc.AgentServiceStub(channel)

    def _forget(self, address: str) -> None:
        """Drops the channel, because the workspace's next agent has another address."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            # Calls that still use the channel would fail as cancelled by their own caller, so they
            # get the time to end first.
            closing = asyncio.create_task(channel.close(SIGNAL_BUDGET_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _attempt_seconds(until: float) -> float:
    return max(0.0, min(_ATTEMPT_SECONDS, until - time.monotonic()))
