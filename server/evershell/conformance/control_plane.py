"""A control plane of one workspace, in memory: it serves RuntimeService and signals the agent.

It applies the rules of the core.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import Acknowledgement, CancelTask, Signal
from evershell.agent.v1.runtime_service_pb2 import (
    BootstrapRequest,
    BootstrapResponse,
    CancelChildRequest,
    CommitEventsRequest,
    CommitEventsResponse,
    GetChildRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
    SubmitChildRequest,
)
from evershell.agent.v1.runtime_service_pb2_grpc import (
    RuntimeServiceServicer,
    add_RuntimeServiceServicer_to_server,
)
from evershell.workspace.v1 import task_pb2

from evershell.api import agent_codec
from evershell.core import agent_rules, task_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.runtime import Directive
from evershell.core.task import DEFAULT_MAX_ITERATIONS, AgentEvent, CancelIntent, Phase, Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.pod.messages import cancellation_fields, encode_assignment
from evershell.pod.signal_stream import NotAcknowledgedError, SignalStream
from evershell.pod.spec import PodSpec
from evershell.pod.tls import Connector, TlsIdentity, agent_name, listen
from evershell.pod.tokens import (
    SECRET_BYTES,
    TIME_TRAILER,
    accepted_minutes,
    minute_of,
    parse_runtime_token,
    runtime_token,
    signal_token,
)

if TYPE_CHECKING:
    from evershell.agent.v1 import runtime_service_pb2

WORKSPACE_ID = "ws_check"
_SIGNAL_SECONDS = 5.0
# Longer than any case, so that no agent loses its lease because the machine stalls.
LEASE_SECONDS = 600.0
# The lease length that agents are told. They send about six heartbeats in this time.
_BEATS_SECONDS = 3.0

Context = grpc.aio.ServicerContext[Any, Any]


class Worker(RuntimeServiceServicer):
    """One of the workers. All workers share the state of the control plane."""

    def __init__(self, plane: "ControlPlane") -> None:
        self._plane = plane
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        """Serves RuntimeService. After a stop, uses the same address again."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_RuntimeServiceServicer_to_server(self, self._server)
        port = listen(self._server, self.address, self._plane.tls)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Stops the worker and ends its calls."""
        if self._server is not None:
            await self._server.stop(grace=None)

    async def Bootstrap(self, request: BootstrapRequest, context: Context) -> BootstrapResponse:
        """Not needed: the agent gets its whole spec on standard input."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)
        raise AssertionError("abort always raises")

    async def Register(self, request: RegisterRequest, context: Context) -> RegisterResponse:
        """Records the address of the agent."""
        epoch = await self._plane.enter(context)
        try:
            agent_rules.check_address(request.address, on_loopback=True, elsewhere=False)
        except BreachError as breach:
            await self._plane.refuse(context, breach)
        return RegisterResponse(directive=self._plane.register(epoch, request.address))

    async def Heartbeat(self, request: HeartbeatRequest, context: Context) -> HeartbeatResponse:
        """Renews the lease."""
        epoch = await self._plane.enter(context)
        try:
            phase = agent_codec.decode_phase(request.phase)
        except BreachError as breach:
            await self._plane.refuse(context, breach)
        await self._plane.notice(request.task_id, phase)
        return HeartbeatResponse(directive=self._plane.directive(epoch))

    async def CommitEvents(
        self, request: CommitEventsRequest, context: Context
    ) -> CommitEventsResponse:
        """Commits events by the rules of the core."""
        epoch = await self._plane.enter(context)
        try:
            events = agent_codec.decode_commit(request)
            agent_rules.check_events(events)
            await self._plane.commit(epoch, request.task_id, events)
        except (BreachError, Failure) as refusal:
            await self._plane.refuse(context, refusal)
        # The answer is lost if an outage has begun meanwhile.
        await self._plane.abort_in_outage(context)
        return CommitEventsResponse(directive=self._plane.directive(epoch, is_renewed=False))

    async def SubmitChild(self, request: SubmitChildRequest, context: Context) -> task_pb2.Task:
        """Refused, because there is only one workspace."""
        return await _no_children(context)

    async def GetChild(self, request: GetChildRequest, context: Context) -> task_pb2.Task:
        """There are none."""
        return await _no_children(context)

    async def CancelChild(self, request: CancelChildRequest, context: Context) -> task_pb2.Task:
        """There are none."""
        return await _no_children(context)


async def _no_children(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "The check has no other workspace.")
    raise AssertionError("abort always raises")


class ControlPlane:
    """The workspace, its current task and its agent. The suite and the tests set the faults."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lease_seconds = LEASE_SECONDS
        self.lease_length_seconds = _BEATS_SECONDS
        # While this is set, every call is answered with this code.
        self.outage: grpc.StatusCode | None = None
        # The rules that the agent broke.
        self.breaches: list[str] = []
        self.workers: list[Worker] = []
        # The certificate of the control plane; None for plain text.
        self.tls: TlsIdentity | None = None
        self._clock = clock
        self._secrets = token_bytes(SECRET_BYTES), token_bytes(SECRET_BYTES)
        self._tasks = 0
        self._locked = Locked(_workspace(), None)
        self._changed = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._stream: SignalStream | None = None

    async def serve(self) -> str:
        """Starts another worker. Returns its address."""
        worker = self.new_worker()
        await worker.start()
        self.workers.append(worker)
        return worker.address

    def new_worker(self) -> Worker:
        """A worker that has not started."""
        return Worker(self)

    async def stop(self) -> None:
        """Stops the workers."""
        await self._close_channel()
        for worker in self.workers:
            await worker.stop()

    async def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Waits for a condition that becomes true through calls of the agent.

        Returns False at the limit.
        """
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Makes `until` check its condition again."""
        self._changed.set()

    # The agent

    def spec(self, files_dir: str, **fields: Any) -> PodSpec:
        """The spec of the agent."""
        runtime_secret, signal_secret = self._secrets
        return PodSpec(
            workspace_id=WORKSPACE_ID,
            epoch=self.epoch,
            runtime_addresses=[worker.address for worker in self.workers],
            runtime_secret=runtime_secret.hex(),
            signal_secret=signal_secret.hex(),
            files_dir=files_dir,
            **fields,
        )

    async def begin_epoch(self) -> None:
        """Fences the agent. The next agent gets new secrets."""
        await self._close_channel()
        self._secrets = token_bytes(SECRET_BYTES), token_bytes(SECRET_BYTES)
        workspace = replace(_workspace(), epoch=self.epoch + 1)
        self._locked = Locked(workspace, None)

    @property
    def epoch(self) -> int:
        """The epoch of the agent."""
        return self._locked.workspace.epoch

    @property
    def address(self) -> str:
        """The address of the agent; empty until it has registered."""
        return self._locked.workspace.agent_address or ""

    async def signal(self, signal: Signal, traceparent: str = "") -> Acknowledgement:
        """Signals the agent. Raises NotAcknowledgedError."""
        signal.token = self.signal_token
        signal.traceparent = traceparent
        if self._stream is None or self._stream.is_over:
            await self._close_channel()
            self._channel = self.open_channel()
            self._stream = SignalStream(self._channel, signal.token)
        try:
            async with asyncio.timeout(_SIGNAL_SECONDS):
                return await self._stream.send(signal)
        except TimeoutError:
            raise NotAcknowledgedError(f"no answer within {_SIGNAL_SECONDS:g} s") from None

    @property
    def signal_token(self) -> str:
        """The signal token of the current minute."""
        return signal_token(self._secrets[1], minute_of(self._clock()))

    def open_channel(self) -> grpc.aio.Channel:
        """A channel to the agent."""
        return Connector(self.tls).open(self.address, agent_name(WORKSPACE_ID, self.epoch), ())

    async def _close_channel(self) -> None:
        self._stream = None
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    # Tasks

    @property
    def task(self) -> Task | None:
        """The current task."""
        return self._locked.task

    def assign(
        self, description: str, task_id: str = "", max_iterations: int = DEFAULT_MAX_ITERATIONS
    ) -> Task:
        """Gives the workspace a task. The next directive assigns it to the agent."""
        self._tasks += 1
        task = Task(
            id=task_id or f"task_{self._tasks}",
            workspace_id=WORKSPACE_ID,
            description=description,
            max_iterations=max_iterations,
            created_at=datetime.now(UTC),
        )
        self._apply(task_lifecycle.submit(self._locked, task, "check"))
        return task

    async def start(self, task: Task, traceparent: str = "") -> bool:
        """Signals a task to the agent. Returns whether the agent accepts the task.

        Raises NotAcknowledgedError.
        """
        assignment = encode_assignment(task, datetime.now(UTC))
        return (await self.signal(Signal(start_task=assignment), traceparent)).known

    async def cancel(
        self, task_id: str, force_after_seconds: float | None = None, traceparent: str = ""
    ) -> bool:
        """Records the intent, then signals the agent. Returns whether the agent has the task.

        Raises NotAcknowledgedError.
        """
        now = datetime.now(UTC)
        is_forced = force_after_seconds is not None
        intent = CancelIntent(
            requested_by="check",
            credential_kind="check",
            requested_at=now,
            reason="the check cancels it",
            request_id="check",
            force_at=now + timedelta(seconds=force_after_seconds or 0) if is_forced else None,
            force_requested_by="check" if is_forced else None,
        )
        cancellation: Any = {"reason": intent.reason}
        if self.task is not None and self.task.id == task_id:
            self._apply(task_lifecycle.request_cancel(self._locked, intent))
            assert self.task is not None
            cancellation = cancellation_fields(self.task, now)
        signal = Signal(cancel_task=CancelTask(task_id=task_id, cancellation=cancellation))
        return (await self.signal(signal, traceparent)).known

    def end_open_task(self, reason: str) -> None:
        """Ends the task of an agent whose pod has ended, as the fleet controller does."""
        now = datetime.now(UTC) + timedelta(milliseconds=1)
        self._apply(task_lifecycle.end_open_task(self._locked, reason, now, work_stopped=True))

    # What the workers call

    async def enter(self, context: Context) -> int:
        """Checks the token of a call. Returns the epoch that it names."""
        await self.abort_in_outage(context)
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        named = parse_runtime_token(token)
        workspace_id, epoch, minute = named or ("", 0, 0)
        expected = runtime_token(workspace_id, epoch, self._secrets[0], minute)
        if named is None or (epoch == self.epoch and not hmac.compare_digest(token, expected)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token is not authentic.")
        now = self._clock()
        if minute not in accepted_minutes(now):
            message = "The token is expired or not yet valid."
            trailers = ((TIME_TRAILER, str(int(now))),)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, trailers)
        return epoch

    async def abort_in_outage(self, context: Context) -> None:
        """Refuses the call during an outage."""
        if self.outage is not None:
            await context.abort(self.outage, "The database is not available.")

    async def refuse(self, context: Context, refusal: Exception) -> NoReturn:
        """Refuses a message that breaks a rule."""
        self.breaches.append(str(refusal))
        self.wake()
        is_breach = isinstance(refusal, BreachError)
        code = (
            grpc.StatusCode.INVALID_ARGUMENT if is_breach else grpc.StatusCode.FAILED_PRECONDITION
        )
        await context.abort(code, str(refusal))
        raise AssertionError("abort always raises")

    def register(self, epoch: int, address: str) -> "runtime_service_pb2.Directive":
        """Records the address of the agent."""
        if epoch == self.epoch:
            workspace = replace(self._locked.workspace, agent_address=address)
            self._locked = replace(self._locked, workspace=workspace)
        self.wake()
        return self.directive(epoch)

    async def notice(self, task_id: str, phase: Phase) -> None:
        """Called when the agent reports its task and its phase."""
        self.wake()

    async def commit(self, epoch: int, task_id: str, events: Sequence[AgentEvent]) -> None:
        """Commits events by the rules of the core. Raises Failure and BreachError."""
        now = datetime.now(UTC)
        self._apply(task_lifecycle.commit(self._locked, epoch, task_id, events, now))

    def directive(self, epoch: int, *, is_renewed: bool = True) -> "runtime_service_pb2.Directive":
        """What the agent must do."""
        return agent_codec.encode_directive(
            Directive(
                fenced=self._locked.workspace.is_fenced(epoch),
                task=self.task,
                lease_seconds=self.lease_seconds if is_renewed else None,
            ),
            self.lease_length_seconds,
            datetime.now(UTC),
        )

    def committed(self, change: Change) -> None:
        """Called after a change was committed.

        Its `task` is the current task, or has just ended.
        """

    def _apply(self, change: Change) -> None:
        has_ended = change.task is not None and change.task.status.is_terminal
        self._locked = Locked(change.workspace, None if has_ended else change.task)
        self.committed(change)
        self.wake()


def _workspace() -> Workspace:
    now = datetime.now(UTC)
    return Workspace(
        id=WORKSPACE_ID,
        org_id="org_check",
        name="check",
        status=WorkspaceStatus.IDLE,
        created_by_user_id=None,
        created_at=now,
        updated_at=now,
        epoch=1,
    )
