"""A control plane of one workspace, in memory: it serves RuntimeService and calls AgentService.

The rules are those of the core. It has two workers, and faults that the suite turns on.
"""

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import (
    CancelTaskRequest,
    GetSessionRequest,
    GetSessionResponse,
    StartTaskRequest,
)
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from evershell.agent.v1.runtime_service_pb2 import (
    BootstrapRequest,
    BootstrapResponse,
    CommitEventsRequest,
    CommitEventsResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
)
from evershell.agent.v1.runtime_service_pb2_grpc import (
    RuntimeServiceServicer,
    add_RuntimeServiceServicer_to_server,
)

from evershell.api import codec
from evershell.core import agent_rules, task_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure
from evershell.core.runtime import Directive
from evershell.core.task import AgentEvent, CancelIntent, IterationCompleted, Phase, Task, TaskEnded
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.pod.messages import cancellation_fields, encode_assignment
from evershell.pod.spec import PodSpec
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
    from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

_WORKERS = 2
_SIGNAL_SECONDS = 5.0
# Longer than any case, so that no stall of the machine ends an agent.
LEASE_SECONDS = 600.0
# Agents send about six heartbeats in this time.
_BEATS_SECONDS = 3.0

Context = grpc.aio.ServicerContext[Any, Any]


class Moment(StrEnum):
    """When a task is cancelled."""

    START = "before the first iteration"
    MODEL_CALL = "during a model call"
    TOOL_CALL = "during a tool call"
    TWO_TOOLS = "during two tools in parallel"
    BETWEEN = "between iterations"
    END = "at the moment of the end"


_PHASES: dict[Moment | None, Phase] = {
    Moment.MODEL_CALL: Phase.MODEL_CALL,
    Moment.TOOL_CALL: Phase.TOOL_CALL,
    Moment.TWO_TOOLS: Phase.TOOL_CALL,
}


@dataclass(slots=True)
class Run:
    """A task, and what the control plane sees of it."""

    description: str
    # When it is cancelled; None for never.
    moment: Moment | None = None
    force: bool = False
    iterations: list[dict[str, Any]] = field(default_factory=list)
    # The task as it has ended.
    ended: Task | None = None
    # The number of iterations at the time of the cancellation; None if it is not cancelled.
    cancelled_after: int | None = None
    cancelled_at: float = 0.0
    # What the agent committed after the end was acknowledged.
    repeats: int = 0


class _Worker(RuntimeServiceServicer):
    """One of the workers, which have the same state."""

    def __init__(self, plane: "ControlPlane") -> None:
        self._plane = plane
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_RuntimeServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)

    async def Bootstrap(self, request: BootstrapRequest, context: Context) -> BootstrapResponse:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The spec is on standard input.")
        raise AssertionError("abort always raises")

    async def Register(self, request: RegisterRequest, context: Context) -> RegisterResponse:
        epoch = await self._plane.enter(context)
        try:
            agent_rules.check_address(request.address, on_loopback=True, elsewhere=False)
        except BreachError as breach:
            await self._plane.refuse(context, breach)
        return RegisterResponse(directive=self._plane.register(epoch, request.address))

    async def Heartbeat(self, request: HeartbeatRequest, context: Context) -> HeartbeatResponse:
        epoch = await self._plane.enter(context)
        try:
            phase = codec.decode_phase(request.phase)
        except BreachError as breach:
            await self._plane.refuse(context, breach)
        await self._plane.notice(request.task_id, phase)
        return HeartbeatResponse(directive=self._plane.directive(epoch))

    async def CommitEvents(
        self, request: CommitEventsRequest, context: Context
    ) -> CommitEventsResponse:
        epoch = await self._plane.enter(context)
        try:
            events = codec.decode_agent_events(request.events)
            agent_rules.check_events(events)
            await self._plane.commit(epoch, request.task_id, events)
        except (BreachError, Failure) as refusal:
            await self._plane.refuse(context, refusal)
        # The answer is lost if the outage has begun meanwhile.
        await self._plane.abort_in_outage(context)
        return CommitEventsResponse(directive=self._plane.directive(epoch, is_renewed=False))


class ControlPlane:
    """The workspace, its current task and its agent. The suite sets the faults."""

    def __init__(self) -> None:
        self.lease_seconds = LEASE_SECONDS
        # While it is set, every call is answered with UNAVAILABLE.
        self.is_unavailable = False
        # Whether the outage begins with the next commit of an iteration.
        self.has_outage_after_iteration = False
        self.refused_calls = 0
        self.renewed_at = 0.0
        # What the agent did against the rules.
        self.breaches: list[str] = []
        self.workers = [_Worker(self) for _ in range(_WORKERS)]
        self.run = Run("")
        self._runs = 0
        now = datetime.now(UTC)
        self._locked = Locked(
            Workspace(
                id="ws_check",
                org_id="org_check",
                name="check",
                status=WorkspaceStatus.IDLE,
                created_by_user_id=None,
                created_at=now,
                updated_at=now,
                epoch=0,
            ),
            None,
        )
        self._secrets = b"", b""
        self._tells_phase = False
        self._changed = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None

    async def serve(self) -> None:
        """Starts the workers."""
        for worker in self.workers:
            await worker.start()

    async def stop(self) -> None:
        """Stops them."""
        await self._close_channel()
        for worker in self.workers:
            await worker.stop()

    async def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Waits for the condition, which calls of the agent change. False at the limit."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Lets `until` look again."""
        self._changed.set()

    # The agent

    async def next_spec(self, files_dir: str, keys: dict[str, str], **limits: float) -> PodSpec:
        """The spec of the next agent. It has a new epoch, and the agent before is fenced."""
        await self._close_channel()
        self._secrets = token_bytes(SECRET_BYTES), token_bytes(SECRET_BYTES)
        workspace = replace(
            self._locked.workspace, epoch=self._locked.workspace.epoch + 1, agent_address=None
        )
        self._locked = Locked(workspace, None)
        runtime_secret, signal_secret = self._secrets
        return PodSpec(
            workspace_id=workspace.id,
            epoch=workspace.epoch,
            runtime_addresses=[worker.address for worker in self.workers],
            runtime_secret=runtime_secret.hex(),
            signal_secret=signal_secret.hex(),
            files_dir=files_dir,
            keys=keys,
            **limits,  # type: ignore[arg-type]
        )

    @property
    def address(self) -> str | None:
        """The address of the agent; None until it has registered."""
        return self._locked.workspace.agent_address

    async def session(self) -> GetSessionResponse:
        """What the agent says of its task. Raises grpc.aio.AioRpcError."""
        request = GetSessionRequest(workspace_id=self._locked.workspace.id)
        return await self._agent().GetSession(
            request, metadata=self._metadata(), timeout=_SIGNAL_SECONDS
        )

    def _agent(self) -> "AgentServiceAsyncStub":
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(str(self.address))
        stub: AgentServiceAsyncStub = AgentServiceStub(self._channel)
        return stub

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = signal_token(self._secrets[1], minute_of(time.time()))
        return (("authorization", f"Bearer {token}"),)

    # Tasks

    async def submit(self, run: Run, max_iterations: int) -> None:
        """Gives the agent a task. The signal may fail: the next directive delivers it, too."""
        self._runs += 1
        self.run = run
        now = datetime.now(UTC)
        task = Task(
            id=f"task_{self._runs}",
            workspace_id=self._locked.workspace.id,
            description=run.description,
            max_iterations=max_iterations,
            created_at=now,
        )
        self._apply(task_lifecycle.submit(self._locked, task, "check"))
        request = StartTaskRequest(
            workspace_id=task.workspace_id,
            epoch=self._locked.workspace.epoch,
            task=encode_assignment(task, now),
        )
        try:
            await self._agent().StartTask(
                request, metadata=self._metadata(), timeout=_SIGNAL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            self.breaches.append(f"StartTask: {error.code().name} {error.details()}")

    async def cancel(self, *, force: bool) -> None:
        """Records the intent, then signals the agent."""
        task, now = self._locked.task, datetime.now(UTC)
        if task is None:
            return
        if self.run.cancelled_after is None:
            self.run.cancelled_after = task.iterations
        self.run.cancelled_at = time.monotonic()
        intent = CancelIntent(
            requested_by="check",
            credential_kind="check",
            requested_at=now,
            reason="the check cancels it",
            request_id="check",
            force_at=now if force else None,
            force_requested_by="check" if force else None,
        )
        self._apply(task_lifecycle.request_cancel(self._locked, intent))
        assert self._locked.task is not None
        request = CancelTaskRequest(
            workspace_id=task.workspace_id,
            epoch=self._locked.workspace.epoch,
            task_id=task.id,
            cancellation=cancellation_fields(self._locked.task, now),
        )
        try:
            await self._agent().CancelTask(
                request, metadata=self._metadata(), timeout=_SIGNAL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            self.breaches.append(f"CancelTask: {error.code().name} {error.details()}")
        self.wake()

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
        is_current = epoch == self._locked.workspace.epoch
        if named is None or (is_current and not hmac.compare_digest(token, expected)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token is not authentic.")
        now = time.time()
        if minute not in accepted_minutes(now):
            message = "The token is expired or not yet valid."
            trailers = ((TIME_TRAILER, str(int(now))),)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, trailers)
        return epoch

    async def abort_in_outage(self, context: Context) -> None:
        """Refuses the call while the database is unavailable."""
        if self.is_unavailable:
            self.refused_calls += 1
            self.wake()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The database is not available.")

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
        if epoch == self._locked.workspace.epoch:
            workspace = replace(self._locked.workspace, agent_address=address)
            self._locked = Locked(workspace, self._locked.task)
        self.wake()
        return self.directive(epoch)

    async def notice(self, task_id: str, phase: Phase) -> None:
        """Cancels the task if the agent reports the phase in which it is to be cancelled."""
        self.wake()
        run, task = self.run, self._locked.task
        is_current = task is not None and task.id == task_id
        if (
            is_current
            and phase is not Phase.NONE
            and await self._is_in(phase)
            and run.cancelled_after is None
            and phase is _PHASES.get(run.moment)
        ):
            await self.cancel(force=run.force)

    async def _is_in(self, phase: Phase) -> bool:
        """Whether the agent still is in the phase. Agents need not tell it in GetSession."""
        with suppress(grpc.aio.AioRpcError):
            told = (await self.session()).phase
            self._tells_phase = self._tells_phase or bool(told)
            return told == phase or not self._tells_phase
        return False

    async def commit(self, epoch: int, task_id: str, events: Sequence[AgentEvent]) -> None:
        """Commits events by the rules of the core. Cancels the task before or after, if it has to.

        Raises Failure and BreachError.
        """
        run = self.run
        task = self._locked.task
        if task is None or task.id != task_id or epoch != self._locked.workspace.epoch:
            run.repeats += 1
            self.wake()
            return
        is_end = any(isinstance(event, TaskEnded) for event in events)
        if run.moment is Moment.END and is_end:
            await self.cancel(force=run.force)
        change = task_lifecycle.commit(self._locked, epoch, task_id, events, datetime.now(UTC))
        for event in events:
            if isinstance(event, IterationCompleted) and event.number > len(run.iterations):
                run.iterations.append(dict(event.payload))
        self._apply(change)
        has_iteration = any(isinstance(event, IterationCompleted) for event in events)
        here = Moment.BETWEEN if has_iteration else Moment.START
        if run.cancelled_after is None and not is_end and run.moment is here:
            await self.cancel(force=run.force)
        if has_iteration and self.has_outage_after_iteration:
            self.has_outage_after_iteration, self.is_unavailable = False, True

    def directive(self, epoch: int, *, is_renewed: bool = True) -> "runtime_service_pb2.Directive":
        """What the agent has to do."""
        left_seconds = None
        if is_renewed:
            self.renewed_at, left_seconds = time.monotonic(), self.lease_seconds
        return codec.encode_directive(
            Directive(
                fenced=self._locked.workspace.is_fenced(epoch),
                task=self._locked.task,
                lease_seconds=left_seconds,
            ),
            min(_BEATS_SECONDS, self.lease_seconds),
            datetime.now(UTC),
        )

    def _apply(self, change: Change) -> None:
        task = change.task
        if task is not None and task.status.is_terminal:
            self.run.ended, task = task, None
        self._locked = Locked(change.workspace, task)
        self.wake()
