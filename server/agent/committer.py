"""What the agent says to the control plane: the client of RuntimeService."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio
from evershell.agent.v1.runtime_service_pb2 import (
    CommitEventsRequest,
    CommitEventsResponse,
    Directive,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
)
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub
from evershell.workspace.v1.task_pb2 import Task
from structlog.typing import FilteringBoundLogger
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

if TYPE_CHECKING:
    from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceAsyncStub

from server.agent.encoding import task_event
from server.agent.lease import HEARTBEATS_A_LEASE, Lease
from server.agent.loop import RejectedError
from server.agent.shutdown import AgentOverError, ExitCode, Shutdown
from server.core import trace
from server.core.lifecycle import AgentEvent
from server.core.task import Phase
from server.core.trace import TraceContext

MAX_ATTEMPT_SECONDS = 3.0
MAX_BACKOFF_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.05
_UNAUTHORIZED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# What will not be taken however often it is sent.
_REJECTED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        # Larger than what a worker's gRPC library lets in.
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_CHANNEL_OPTIONS = (
    # A worker that comes back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)

T = TypeVar("T")


class ApplyDirective(Protocol):
    """See Session.apply."""

    def __call__(self, directive: Directive, sent_at: int, committed_task_id: str = "") -> None:
        """Does what the directive says."""


class Committer:
    """Repeats every call, on one control plane worker after the other, until it is acknowledged or
    the agent is over.

    Only Register and Heartbeat renew the lease: a commit does not in the database, so it must not
    here.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        token: str,
        lease: Lease,
        shutdown: Shutdown,
        mark: Callable[[], int],
        apply: ApplyDirective,
        find_trace: Callable[[], TraceContext | None],
        log: FilteringBoundLogger,
    ) -> None:
        self._addresses = addresses
        self._channels = [
            grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) for address in addresses
        ]
        self._stubs: list[RuntimeServiceAsyncStub] = [
            RuntimeServiceStub(channel) for channel in self._channels
        ]
        # The worker that answered last.
        self._current = 0
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._lease = lease
        self._shutdown = shutdown
        self._mark = mark
        self._apply = apply
        self._find_trace = find_trace
        self._log = log

    async def register(self, address: str, pid: int) -> None:
        """Says where the agent listens, as host:port. Raises AgentOverError."""

        async def attempt(stub: "RuntimeServiceAsyncStub") -> RegisterResponse:
            return await stub.Register(
                RegisterRequest(address=address, pid=pid), **self._call_options
            )

        await self._renewing(attempt)

    async def heartbeat(self, current: Callable[[], tuple[str, Phase]]) -> None:
        """Renews the lease and tells the task id and the phase as they are when each attempt is
        sent. Raises AgentOverError.
        """

        async def attempt(stub: "RuntimeServiceAsyncStub") -> HeartbeatResponse:
            task_id, phase = current()
            request = HeartbeatRequest(
                task_id=task_id, phase=Task.Phase.Value(str(phase) or "phase_unspecified")
            )
            return await stub.Heartbeat(request, **self._call_options)

        await self._renewing(attempt)

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        """See Commit in the loop. Raises AgentOverError and RejectedError."""
        request = CommitEventsRequest(
            task_id=task_id, events=[task_event(happened) for happened in events]
        )

        async def attempt(stub: "RuntimeServiceAsyncStub") -> tuple[int, CommitEventsResponse]:
            sent_at = self._mark()
            context, options = self._find_trace(), self._call_options
            if context is not None:
                options["metadata"] = (*self._metadata, (trace.HEADER, context.traceparent))
            return sent_at, await stub.CommitEvents(request, **options)

        sent_at, response = await self._until_acknowledged(attempt)
        self._apply(response.directive, sent_at, task_id)
        if self._shutdown.is_begun:
            raise AgentOverError
        return response.directive.task.task_id == task_id

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()

    async def _renewing(
        self,
        attempt: "Callable[[RuntimeServiceAsyncStub], Awaitable[RegisterResponse | HeartbeatResponse]]",
    ) -> None:
        async def timed(stub: "RuntimeServiceAsyncStub") -> tuple[float, int, Directive]:
            sent, sent_at = self._lease.clock(), self._mark()
            return sent, sent_at, (await attempt(stub)).directive

        sent, sent_at, directive = await self._until_acknowledged(timed)
        if not directive.fenced:
            self._lease.renew(sent, directive.lease_ms / 1000)
        self._apply(directive, sent_at)
        if self._shutdown.is_begun:
            raise AgentOverError

    async def _until_acknowledged(
        self, attempt: "Callable[[RuntimeServiceAsyncStub], Awaitable[T]]"
    ) -> T:
        retrying = AsyncRetrying(
            wait=wait_random_exponential(
                multiplier=_FIRST_BACKOFF_SECONDS, max=MAX_BACKOFF_SECONDS
            ),
            retry=retry_if_exception(lambda error: isinstance(error, grpc.aio.AioRpcError)),
        )
        return await retrying(self._attempt, attempt)

    async def _attempt(self, attempt: "Callable[[RuntimeServiceAsyncStub], Awaitable[T]]") -> T:
        if self._shutdown.is_begun:
            raise AgentOverError
        used = self._current
        try:
            return await attempt(self._stubs[used])
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in _UNAUTHORIZED:
                self._shutdown.begin(
                    ExitCode.UNAUTHORIZED,
                    f"the control plane answered {code.name}: {error.details()}",
                )
                raise AgentOverError from None
            if code in _REJECTED:
                raise RejectedError(error.details() or code.name) from None
            self._log.warning(
                "call_failed", worker=self._addresses[used], code=code.name, details=error.details()
            )
            # Calls run side by side; only the first that fails on a worker moves on from it.
            if self._current == used:
                self._current = (used + 1) % len(self._stubs)
            raise

    @property
    def _call_options(self) -> dict[str, Any]:
        lease_seconds = self._lease.length_seconds
        limit_seconds = (
            min(MAX_ATTEMPT_SECONDS, lease_seconds / HEARTBEATS_A_LEASE)
            if lease_seconds
            else MAX_ATTEMPT_SECONDS
        )
        return {"metadata": self._metadata, "timeout": limit_seconds}
