"""The gRPC client with which the control plane calls agents.

A call is retried within one time budget, so a caller waits at most 2 s for an agent that has ended,
is frozen or is slow.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio
import structlog
from evershell.agent.v1 import agent_service_pb2
from google.protobuf.message import Message
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from evershell.auth.pod_tokens import PodTokens
from evershell.core import deadline, trace
from evershell.core.errors import AgentUnreachableError
from evershell.core.ports import Clock
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.pod.messages import cancellation_fields, encode_assignment
from evershell.pod.tls import Connector, TlsIdentity, agent_name

log = structlog.get_logger()

# The time for all attempts of a call, less if the caller's deadline is earlier. The port Agents
# promises an answer within 2 s.
SIGNAL_BUDGET_SECONDS = 1.8
_ATTEMPT_SECONDS = 0.6
_MAX_BACKOFF_SECONDS = 0.3
# The default limit of open files is 1,024 on many systems, and a channel takes one file.
MAX_CHANNELS = 500
_OPTIONS = (
    # Agents are on this network, so a proxy that the environment names is not used.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default of 1 s and more would leave no time in the budget for a reconnection to an
    # agent that has recovered.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_SERVICE = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
_MESSAGES: dict[str, tuple[type[Message], type[Message]]] = {
    "StartTask": (agent_service_pb2.StartTaskRequest, agent_service_pb2.StartTaskResponse),
    "CancelTask": (agent_service_pb2.CancelTaskRequest, agent_service_pb2.CancelTaskResponse),
}

# The address, host:port, and the name in the certificate. Another agent may listen on the address
# later. Without TLS, the name is empty.
Key: TypeAlias = tuple[str, str]
# Makes a message for each attempt, because it says how much time is left.
Request: TypeAlias = Callable[[], Message]


class _Agent:
    """The channel to an agent.

    A method is prepared when it is first called: to prepare all takes as long as half of a call,
    and most channels are used for one.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._methods: dict[str, Any] = {}

    def method(self, rpc: str) -> Any:
        if rpc not in self._methods:
            request, response = _MESSAGES[rpc]
            self._methods[rpc] = self.channel.unary_unary(
                f"/{_SERVICE}/{rpc}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
        return self._methods[rpc]


class AgentClient:
    """Implements ports.Agents over gRPC.

    Keeps at most `max_channels` channels: the ones that were used last. Calls in flight on a
    channel that is no longer kept have the time of an attempt to end.
    """

    def __init__(
        self,
        pod_tokens: PodTokens,
        clock: Clock,
        tls: TlsIdentity | None = None,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        """Without `tls`, agents are called in plain text."""
        self._pod_tokens = pod_tokens
        self._clock = clock
        self._connector = Connector(tls)
        self._max_channels = max_channels
        # In the order of their last use.
        self._agents: OrderedDict[Key, _Agent] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        # An agent that refuses is treated as unreachable: it has a task that the database does not
        # know of.
        await self._call(
            workspace,
            "StartTask",
            lambda: agent_service_pb2.StartTaskRequest(
                workspace_id=workspace.id,
                epoch=workspace.epoch,
                task=encode_assignment(task, self._clock()),
            ),
        )

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        answer = await self._call(
            workspace,
            "CancelTask",
            lambda: agent_service_pb2.CancelTaskRequest(
                workspace_id=workspace.id,
                epoch=workspace.epoch,
                task_id=task.id,
                cancellation=cancellation_fields(task, self._clock()),
            ),
        )
        assert isinstance(answer, agent_service_pb2.CancelTaskResponse)
        return answer.known

    async def aclose(self) -> None:
        """Closes every channel. Calls in flight fail."""
        channels = [agent.channel for agent in self._agents.values()]
        self._agents.clear()
        await asyncio.gather(*(channel.close() for channel in channels), *self._closing)

    async def _call(self, workspace: Workspace, rpc: str, request: Request) -> object:
        address = workspace.agent_address
        if address is None:
            raise AgentUnreachableError(f"the agent of {workspace.id} has not registered")
        name = agent_name(workspace.id, workspace.epoch) if self._connector.has_tls else ""
        key = (address, name)
        until = time.monotonic() + deadline.bounded(SIGNAL_BUDGET_SECONDS)
        try:
            # Nearly every call succeeds at once, so the retries are set up only after a failure.
            return await self._attempt(workspace, key, rpc, request, until)
        except grpc.aio.AioRpcError:
            return await self._retry(workspace, key, rpc, request, until)

    async def _attempt(
        self, workspace: Workspace, key: Key, rpc: str, request: Request, until: float
    ) -> object:
        signing_key = self._pod_tokens.signing_key(workspace.id, workspace.epoch)
        metadata = self._pod_tokens.signal_metadata(workspace.id, workspace.epoch, signing_key)
        if (context := trace.current()) is not None:
            metadata = (*metadata, (trace.HEADER, context.traceparent))
        seconds = max(0.0, min(_ATTEMPT_SECONDS, until - time.monotonic()))
        try:
            return await self._agent(key).method(rpc)(request(), timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._pod_tokens.note_refusal(workspace.id, workspace.epoch, signing_key)
            raise

    async def _retry(
        self, workspace: Workspace, key: Key, rpc: str, request: Request, until: float
    ) -> object:
        address, _ = key
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(grpc.aio.AioRpcError),
            wait=wait_random_exponential(multiplier=0.05, max=_MAX_BACKOFF_SECONDS),
            stop=stop_before_delay(until - time.monotonic()),
        )
        try:
            async for again in retrying:
                with again:
                    return await self._attempt(workspace, key, rpc, request, until)
        except RetryError as error:
            log.warning("agent_unreachable", address=address, error=repr(error.__cause__ or error))
            # The workspace's next agent has another address.
            self._forget(key)
            raise AgentUnreachableError(f"the agent at {address} does not answer") from error
        raise AssertionError("retrying ends with an answer or an error")

    def _agent(self, key: Key) -> _Agent:
        agent = self._agents.get(key)
        if agent is not None:
            self._agents.move_to_end(key)
            return agent
        if len(self._agents) >= self._max_channels:
            self._forget(next(iter(self._agents)))
        agent = self._agents[key] = _Agent(self._connector.open(*key, _OPTIONS))
        return agent

    def _forget(self, key: Key) -> None:
        """No longer keeps the channel, if there is one."""
        agent = self._agents.pop(key, None)
        if agent is not None:
            closing = asyncio.create_task(agent.channel.close(_ATTEMPT_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
