"""The agent's client of RuntimeService: the calls, the tokens, and the clock for the tokens."""

import asyncio
import ipaddress
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from evershell.agent.v1 import runtime_service_pb2
from evershell.agent.v1.runtime_service_pb2 import (
    CommitEventsRequest,
    CommitEventsResponse,
    Directive,
    GetChildRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
    SubmitChildRequest,
)
from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceStub
from evershell.workspace.v1 import event_pb2, task_pb2

from evershell.agents.active_task import CancelFlag
from evershell.agents.children import ChildRefusedError, ChildRequest
from evershell.agents.lease import HEARTBEATS_A_LEASE, Lease
from evershell.agents.loop import RejectedError
from evershell.agents.session import Session
from evershell.agents.shutdown import AgentEndingError, ExitCode, Shutdown
from evershell.backoff import backoff
from evershell.core import trace
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    IterationReported,
    Phase,
    TaskEnded,
    TaskStarted,
)
from evershell.core.trace import TraceContext
from evershell.pod.messages import encode_phase
from evershell.pod.tls import CONTROL_PLANE, Connector, TlsIdentity
from evershell.pod.tokens import (
    SLUG_TRAILER,
    TIME_TRAILER,
    minute_of,
    runtime_token,
    secret_of,
)
from evershell.telemetry.logs import Log
from evershell.version import VERSION

if TYPE_CHECKING:
    from evershell.agent.v1.runtime_service_pb2_grpc import RuntimeServiceAsyncStub

MAX_ATTEMPT_SECONDS = 3.0
# The longest wait before the first repeat of a call. The wait doubles for each further repeat.
# FIRST_BACKOFF_SECONDS applies if the worker is gone, so that the agent soon tries another worker.
# BUSY_BACKOFF_SECONDS applies if the worker is slow or answers `unavailable`, because the other
# workers may be overloaded too.
FIRST_BACKOFF_SECONDS = 0.05
BUSY_BACKOFF_SECONDS = 0.5
# The longest wait before any repeat while the task must be interrupted. The control plane
# allows 2 s for the interruption.
FORCE_BACKOFF_SECONDS = 1.0
# If the task must be interrupted and a commit of the task is not answered within this time, the
# commit is also sent to another worker.
HEDGE_SECONDS = 0.5
_UNAUTHORIZED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# Status codes after which a retry does not help.
_REJECTED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        # The message exceeds the size limit of the worker's gRPC library. The service answers
        # `rate_limited` with this code too, and then a retry helps.
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# The slugs after which a call about a child is repeated. All other slugs are refusals.
_RETRIED_SLUGS = frozenset({"unauthenticated", "unavailable", "deadline_exceeded", "internal"})
_CHANNEL_OPTIONS = (
    # With these waits, a channel reconnects to a restarted worker within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # All workers behind a DNS name may be replaced within one lease, so gRPC must soon resolve the
    # name again. By default, it does so at most every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # All calls to a DNS name go to one of the workers behind it. If this worker is frozen or
    # unreachable, a ping during a call detects it, and the agent connects to another worker. With
    # the default lease, heartbeats are so frequent that a worker that answers is never pinged.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    # Spreads the agents over the workers behind a DNS name.
    (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}',
    ),
)
# Without this, two channels to the same address share a connection.
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
T = TypeVar("T")
# Only the type stubs have a class for asynchronous calls.
RuntimeStub: TypeAlias = "RuntimeServiceAsyncStub"


def connect(
    addresses: Sequence[str], tls: TlsIdentity | None
) -> tuple[list[grpc.aio.Channel], dict[str, RuntimeStub]]:
    """Channels to the control plane workers at these addresses, and their stubs.

    There may be several workers behind a single DNS name, so it gets two channels. The second
    channel connects when it is first used.
    """
    connector = Connector(tls)
    channels = {
        address: connector.open(address, CONTROL_PLANE, _CHANNEL_OPTIONS) for address in addresses
    }
    if len(addresses) == 1 and not _is_ip(addresses[0]):
        options = (*_CHANNEL_OPTIONS, _OWN_CONNECTION)
        second = connector.open(addresses[0], CONTROL_PLANE, options)
        channels[f"{addresses[0]}, second connection"] = second
    return [*channels.values()], {each: RuntimeServiceStub(channels[each]) for each in channels}


def _is_ip(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ControlPlaneClock:
    """The agent's estimate of the control plane's time, in seconds since 1970.

    The first estimate is the time of this machine when the agent starts. If the control plane
    refuses a token because of its time, the time in the answer replaces the estimate. A monotonic
    clock counts from there, so changes to this machine's clock have no effect.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._offset_seconds = wall() - clock()

    def __call__(self) -> float:
        return self._clock() + self._offset_seconds

    def set(self, seconds: float) -> None:
        """Sets the estimate."""
        self._offset_seconds = seconds - self._clock()


class RuntimeCredential:
    """Makes the runtime tokens of an agent (pod/tokens.py)."""

    def __init__(
        self, workspace_id: str, epoch: int, secret: str, clock: ControlPlaneClock
    ) -> None:
        """`secret` is in hexadecimal digits. Raises ValueError if it is not a secret."""
        self._workspace_id = workspace_id
        self._epoch = epoch
        self._secret = secret_of(secret)
        self.clock = clock
        self._minute: int | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call that is sent now."""
        minute = minute_of(self.clock())
        if minute != self._minute:
            token = runtime_token(self._workspace_id, self._epoch, self._secret, minute)
            self._minute, self._metadata = minute, (("authorization", f"Bearer {token}"),)
        return self._metadata


class RuntimeClient:
    """Repeats each call, on one worker after the other, until it is answered or the agent ends.

    Register and Heartbeat renew the lease. A commit renews it neither in the database nor here.
    """

    def __init__(
        self,
        workers: dict[str, RuntimeStub],
        credential: RuntimeCredential,
        lease: Lease,
        shutdown: Shutdown,
        session: Session,
        log: Log,
    ) -> None:
        """`workers` maps the address of each worker to its stub.

        The session applies the directive in each reply.
        """
        self._addresses, self._stubs = list(workers), list(workers.values())
        # The index of the worker that is called. Agents begin with different workers.
        self._current = random.randrange(len(self._stubs))  # noqa: S311 - not a secret
        self._credential = credential
        self._lease = lease
        self._shutdown = shutdown
        self._session = session
        self._log = log

    async def register(self, address: str, pid: int) -> None:
        """Registers the address on which the agent listens, host:port. Raises AgentEndingError."""

        async def attempt(stub: RuntimeStub) -> RegisterResponse:
            request = RegisterRequest(address=address, pid=pid, version=VERSION)
            return await stub.Register(request, **self._options())

        await self._renewing(attempt)

    async def heartbeat(self, current: Callable[[], tuple[str, Phase]]) -> None:
        """Renews the lease. `current` returns the task id and the phase for each attempt.

        Raises AgentEndingError.
        """

        async def attempt(stub: RuntimeStub) -> HeartbeatResponse:
            task_id, phase = current()
            request = HeartbeatRequest(task_id=task_id, phase=encode_phase(phase))
            return await stub.Heartbeat(request, **self._options())

        await self._renewing(attempt)

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        """Implements loop.Commit. Raises AgentEndingError, RejectedError."""
        request = encode_commit(task_id, events)

        async def attempt(stub: RuntimeStub) -> tuple[int, CommitEventsResponse]:
            sent_at = self._session.mark()
            return sent_at, await stub.CommitEvents(request, **self._options(self._session.trace))

        task = self._session.task
        if task is None or task.id != task_id:
            sent_at, response = await self._until_acknowledged(attempt)
        else:
            sent_at, response = await self._hedged(attempt, task.cancel)
        self._session.apply(response.directive, sent_at, task_id)
        if self._shutdown.is_begun:
            raise AgentEndingError
        return response.directive.task.task_id == task_id

    async def call_about_child(self, request: ChildRequest) -> task_pb2.Task:
        """Implements children.Call. Also raises AgentEndingError."""

        async def attempt(stub: RuntimeStub) -> task_pb2.Task:
            try:
                return await self._send(stub, request)
            except grpc.aio.AioRpcError as error:
                slug = _trailer(error, SLUG_TRAILER)
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    slug = "not_found"
                if slug and slug not in _RETRIED_SLUGS:
                    raise ChildRefusedError(slug, error.details() or slug) from None
                raise

        try:
            return await self._until_acknowledged(attempt)
        except RejectedError as error:
            raise ChildRefusedError("validation_error", str(error)) from None

    async def _send(self, stub: RuntimeStub, request: ChildRequest) -> task_pb2.Task:
        options = self._options(self._session.trace)
        match request:
            case SubmitChildRequest():
                return await stub.SubmitChild(request, **options)
            case GetChildRequest():
                return await stub.GetChild(request, **options)
            case _:
                return await stub.CancelChild(request, **options)

    async def _renewing(
        self,
        attempt: Callable[[RuntimeStub], Awaitable[RegisterResponse | HeartbeatResponse]],
    ) -> None:
        async def timed(stub: RuntimeStub) -> tuple[float, int, Directive]:
            sent, sent_at = self._lease.clock(), self._session.mark()
            return sent, sent_at, (await attempt(stub)).directive

        sent, sent_at, directive = await self._until_acknowledged(timed)
        if not directive.fenced:
            length_ms = directive.lease_length_ms or directive.lease_ms
            self._lease.renew(sent, directive.lease_ms / 1000, length_ms / 1000)
        self._session.apply(directive, sent_at)
        if self._shutdown.is_begun:
            raise AgentEndingError

    async def _hedged(
        self, attempt: Callable[[RuntimeStub], Awaitable[T]], cancel: CancelFlag
    ) -> T:
        """Makes a call about a task. The call must be idempotent, and its first answer counts.

        If the task must be interrupted and the worker does not answer soon, the call also goes to
        another worker. The first worker may have frozen, and the control plane ends the pod of an
        agent that does not end such a task in time.
        """
        worker = self._current
        first = asyncio.create_task(self._until_acknowledged(attempt, cancel))
        second: asyncio.Task[T] | None = None
        try:
            await asyncio.wait({first}, timeout=HEDGE_SECONDS)
            if not first.done() and len(self._stubs) > 1:
                second = asyncio.create_task(self._hedge(worker, attempt, cancel))
                await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
                if not first.done():
                    return second.result()
            return await first
        finally:
            first.cancel()
            if second is not None:
                second.cancel()

    async def _hedge(
        self, silent: int, attempt: Callable[[RuntimeStub], Awaitable[T]], cancel: CancelFlag
    ) -> T:
        await cancel.wait_force_due()
        self._leave(silent)
        self._log.warning("call_hedged", worker=self._addresses[self._current])
        return await self._until_acknowledged(attempt, cancel)

    async def _until_acknowledged(
        self, attempt: Callable[[RuntimeStub], Awaitable[T]], cancel: CancelFlag | None = None
    ) -> T:
        """Repeats the call until it is answered.

        `cancel` is the cancel flag of the call's task. While this task must be interrupted, the
        waits between attempts are shorter.
        """
        failures = 0
        while True:
            try:
                return await self._attempt(attempt)
            except grpc.aio.AioRpcError as error:
                failures += 1
                first = BUSY_BACKOFF_SECONDS if _is_busy(error) else FIRST_BACKOFF_SECONDS
                seconds = backoff(failures, first, self._lease.max_backoff_seconds)
                await _pause(seconds, cancel)

    async def _attempt(self, attempt: Callable[[RuntimeStub], Awaitable[T]]) -> T:
        if self._shutdown.is_begun:
            raise AgentEndingError
        used = self._current
        try:
            return await attempt(self._stubs[used])
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in _UNAUTHORIZED:
                self._renew_token(error)
                raise
            if code in _REJECTED and _trailer(error, SLUG_TRAILER) != "rate_limited":
                raise RejectedError(error.details() or code.name) from None
            self._log.warning(
                "rpc_failed", worker=self._addresses[used], code=code.name, details=error.details()
            )
            self._leave(used)
            raise

    def _leave(self, worker: int) -> None:
        """Switches to the next worker, unless another call has already left this one."""
        if self._current == worker:
            self._current = (worker + 1) % len(self._stubs)

    def _renew_token(self, refusal: grpc.aio.AioRpcError) -> None:
        """Prepares the next attempt after a token was refused only because of its time.

        Either the clocks differ, or the process was frozen while it sent the call. Raises
        AgentEndingError if the control plane refuses the agent itself.
        """
        now = _control_plane_time(refusal)
        if now is None:
            self._shutdown.begin(
                ExitCode.UNAUTHORIZED,
                f"the control plane answered {refusal.code().name}: {refusal.details()}",
            )
            raise AgentEndingError from None
        self._log.warning("token_expired", control_plane_time=now)
        self._credential.clock.set(now)

    def _options(self, context: TraceContext | None = None) -> dict[str, Any]:
        """The options of a call. If `context` is given, the call continues that trace."""
        lease_seconds = self._lease.length_seconds
        limit_seconds = (
            min(MAX_ATTEMPT_SECONDS, lease_seconds / HEARTBEATS_A_LEASE)
            if lease_seconds
            else MAX_ATTEMPT_SECONDS
        )
        metadata = self._credential.metadata
        if context is not None:
            metadata = (*metadata, (trace.HEADER, context.traceparent))
        return {"metadata": metadata, "timeout": limit_seconds}


async def _pause(seconds: float, cancel: CancelFlag | None) -> None:
    """Waits for this time, or for less if the task must be interrupted."""
    if cancel is None:
        await asyncio.sleep(seconds)
    elif cancel.is_force_due:
        await asyncio.sleep(min(seconds, FORCE_BACKOFF_SECONDS))
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await cancel.wait_force_due()


def _is_busy(error: grpc.aio.AioRpcError) -> bool:
    """Whether the worker is slow, or has answered that it or the database cannot serve the call."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return True
    return error.code() not in _UNAUTHORIZED and bool(_trailer(error, SLUG_TRAILER))


def _control_plane_time(error: grpc.aio.AioRpcError) -> int | None:
    """The control plane's time, if it refused the token because of the time; None otherwise."""
    value = _trailer(error, TIME_TRAILER)
    return int(value) if value.isdecimal() else None


def _trailer(error: grpc.aio.AioRpcError, name: str) -> str:
    """The trailer with this name; empty if there is none."""
    return str(dict(error.trailing_metadata() or ()).get(name, ""))


def encode_commit(task_id: str, events: Sequence[AgentEvent]) -> CommitEventsRequest:
    """The events, and a report of the current iteration, as a message."""
    request = CommitEventsRequest(task_id=task_id)
    for event in events:
        if isinstance(event, IterationReported):
            opened = runtime_service_pb2.OpenIteration(number=event.number, **event.payload)
            request.open_iteration.CopyFrom(opened)
        else:
            request.events.append(encode_event(event))
    return request


def encode_event(
    event: TaskStarted | IterationCompleted | TaskEnded,
) -> runtime_service_pb2.TaskEvent:
    """The event as a message."""
    match event:
        case TaskStarted():
            return runtime_service_pb2.TaskEvent(task_started=runtime_service_pb2.TaskStarted())
        case IterationCompleted(number=number, payload=payload):
            iteration = event_pb2.IterationCompleted(number=number, **payload)
            return runtime_service_pb2.TaskEvent(iteration_completed=iteration)
        case TaskEnded():
            ended = runtime_service_pb2.TaskEnded(
                status=task_pb2.Task.Status.Value(str(event.status)),
                result=event.result,
                reason=event.reason,
                forced=event.forced,
            )
            return runtime_service_pb2.TaskEvent(task_ended=ended)
