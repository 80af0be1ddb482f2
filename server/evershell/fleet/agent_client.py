"""The gRPC client with which the control plane calls agents.

A call is retried within one time budget, so a caller waits at most 2 s for an agent that has ended,
is frozen or is slow.
"""

import time
from collections.abc import Awaitable, Callable

import grpc.aio
import structlog
from evershell.agent.v1 import agent_service_pb2
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
from evershell.fleet.agent_channels import AgentChannels, Key
from evershell.pod.messages import cancellation_fields, encode_assignment
from evershell.pod.tls import TlsIdentity

log = structlog.get_logger()

# The time for all attempts of a call, less if the caller's deadline is earlier. The port Agents
# promises an answer within 2 s.
SIGNAL_BUDGET_SECONDS = 1.8
_ATTEMPT_SECONDS = 0.6
_MAX_BACKOFF_SECONDS = 0.3
# The default limit of open files is 1,024 on many systems, and a channel takes one file.
MAX_CHANNELS = 500

# Makes one attempt. Takes the stub, and the options of the call as keywords.
Attempt = Callable[..., Awaitable[object]]


class AgentClient:
    """Implements ports.Agents over gRPC."""

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
        self._channels = AgentChannels(max_channels, tls)

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        # An agent that refuses is treated as unreachable: it has a task that the database does not
        # know of.
        await self._call(
            workspace,
            lambda stub, **options: stub.StartTask(
                agent_service_pb2.StartTaskRequest(
                    workspace_id=workspace.id,
                    epoch=workspace.epoch,
                    task=encode_assignment(task, self._clock()),
                ),
                **options,
            ),
        )

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        answer = await self._call(
            workspace,
            # A message for each attempt, because it says how much time is left.
            lambda stub, **options: stub.CancelTask(
                agent_service_pb2.CancelTaskRequest(
                    workspace_id=workspace.id,
                    epoch=workspace.epoch,
                    task_id=task.id,
                    cancellation=cancellation_fields(task, self._clock()),
                ),
                **options,
            ),
        )
        assert isinstance(answer, agent_service_pb2.CancelTaskResponse)
        return answer.known

    async def aclose(self) -> None:
        """Closes every channel."""
        await self._channels.aclose()

    async def _call(self, workspace: Workspace, attempt: Attempt) -> object:
        address = workspace.agent_address
        if address is None:
            raise AgentUnreachableError(f"the agent of {workspace.id} has not registered")
        key = self._channels.key(address, workspace.id, workspace.epoch)
        until = time.monotonic() + deadline.bounded(SIGNAL_BUDGET_SECONDS)
        try:
            # Nearly every call succeeds at once, so the retries are set up only after a failure.
            return await self._attempt(workspace, key, attempt, until)
        except grpc.aio.AioRpcError:
            return await self._retry(workspace, key, attempt, until)

    async def _attempt(
        self, workspace: Workspace, key: Key, attempt: Attempt, until: float
    ) -> object:
        signing_key = self._pod_tokens.signing_key(workspace.id, workspace.epoch)
        metadata = self._pod_tokens.signal_metadata(workspace.id, workspace.epoch, signing_key)
        if (context := trace.current()) is not None:
            metadata = (*metadata, (trace.HEADER, context.traceparent))
        try:
            with self._channels.channel(key) as stub:
                return await attempt(stub, timeout=_attempt_seconds(until), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._pod_tokens.note_refusal(workspace.id, workspace.epoch, signing_key)
            raise

    async def _retry(
        self, workspace: Workspace, key: Key, attempt: Attempt, until: float
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
                    return await self._attempt(workspace, key, attempt, until)
        except RetryError as error:
            log.warning("agent_unreachable", address=address, error=repr(error.__cause__ or error))
            # The workspace's next agent has another address.
            self._channels.forget(key)
            raise AgentUnreachableError(f"the agent at {address} does not answer") from error
        raise AssertionError("retrying ends with an answer or an error")


def _attempt_seconds(until: float) -> float:
    return max(0.0, min(_ATTEMPT_SECONDS, until - time.monotonic()))
