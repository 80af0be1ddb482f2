"""The control plane of one workspace: the real RuntimeService and core, on the store in memory.

The control plane observes the calls of the agent, refuses them during an outage, and signals the
agent.
"""

import asyncio
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from secrets import token_bytes
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import Acknowledgement, CancelTask, Signal
from evershell.agent.v1.runtime_service_pb2_grpc import add_RuntimeServiceServicer_to_server

from evershell.api.call import Call
from evershell.api.handlers import Handlers, Methods
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.runtime_servicer import RuntimeServicer
from evershell.api.status import GRPC_CODES
from evershell.core import errors, task_lifecycle
from evershell.core.agent_rules import BreachError
from evershell.core.caller import Caller, CredentialKind
from evershell.core.change import Change
from evershell.core.children import Children
from evershell.core.errors import AgentUnreachableError, Failure
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.core.task import DEFAULT_MAX_ITERATIONS, CancelIntent, CurrentIteration, Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.pod.messages import cancellation_fields, encode_assignment
from evershell.pod.signal_stream import NotAcknowledgedError, SignalStream
from evershell.pod.spec import PodSpec
from evershell.pod.tls import Connector, TlsIdentity, agent_name, listen
from evershell.pod.tokens import (
    SECRET_BYTES,
    SLUG_TRAILER,
    TIME_TRAILER,
    accepted_minutes,
    minute_of,
    parse_runtime_token,
    runtime_token,
    signal_token,
)
from evershell.store.memory.memory_store import MemoryStore
from evershell.store.memory.subscriptions import MemorySubscriptions

WORKSPACE_ID = "ws_check"
_SIGNAL_SECONDS = 5.0
# How long a lease lasts. This is longer than any case, so a machine that stalls costs no agent its
# lease.
LEASE_SECONDS = 600.0
# The length of a lease that the replies to agents name. It is much shorter than the real length, so
# that agents send heartbeats often: about six in this time.
_BEATS_SECONDS = 3.0
_CALLER = Caller("org_check", "check", CredentialKind.SESSION, frozenset({"workspace:write"}))


class Worker:
    """One of the workers. All workers share the state of the control plane."""

    def __init__(self, plane: "ControlPlane") -> None:
        self._plane = plane
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        """Starts to serve RuntimeService. After `stop`, serves at the same address again."""
        methods = Methods()
        add_RuntimeServiceServicer_to_server(self._plane.servicer(), cast(grpc.aio.Server, methods))
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((Handlers(methods, [_Observed(self._plane)]),))
        port = listen(self._server, self.address, self._plane.tls)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Stops the worker and ends its calls."""
        if self._server is not None:
            await self._server.stop(grace=None)


class _Observed(Interceptor):
    """Passes each call to the control plane.

    This replaces the interceptors of a worker, which need packages that the extra `agent` does not
    have.
    """

    def __init__(self, plane: "ControlPlane") -> None:
        self._plane = plane

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        async def observed(call: Call) -> Any:
            call.request = method.parse(cast(bytes, await call.context.read()))
            return await self._plane.answer(method.name, call)

        return observed


class _NoAgents:
    """Implements core.ports.Agents for child tasks. Every call fails: there is no other agent."""

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        raise AgentUnreachableError(workspace.id)

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        raise AgentUnreachableError(workspace.id)

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        raise AgentUnreachableError(workspace.id)


class ControlPlane:
    """A control plane with one workspace and its agent. The suite and the tests inject faults."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the clock with which tokens are made and checked."""
        self.lease_seconds = LEASE_SECONDS
        self.lease_length_seconds = _BEATS_SECONDS
        # The code with which every call fails; None if there is no outage.
        self.outage: grpc.StatusCode | None = None
        # The rules that the agent broke.
        self.breaches: list[str] = []
        self.workers: list[Worker] = []
        # The certificate of the control plane; None if connections are in plain text.
        self.tls: TlsIdentity | None = None
        self.store = MemoryStore(_now, self._publish)
        self.store.workspaces[WORKSPACE_ID] = _workspace()
        self._subscriptions = MemorySubscriptions()
        self._clock = clock
        # The secrets of the runtime tokens and of the signal tokens, by epoch.
        self._secrets = {self.epoch: _new_secrets()}
        self._tasks = 0
        self._changed = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._stream: SignalStream | None = None

    async def serve(self) -> str:
        """Starts another worker. Returns its address."""
        worker = Worker(self)
        await worker.start()
        self.workers.append(worker)
        return worker.address

    async def stop(self) -> None:
        """Stops the workers."""
        await self._close_channel()
        for worker in self.workers:
            await worker.stop()

    async def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Waits for a condition that becomes true through calls of the agent.

        Returns False if it is not true after `seconds`.
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

    def changed(self) -> None:
        """Called after each change that the store publishes."""

    def _publish(self, workspace_id: str, *, watched: bool, reconcile: bool) -> None:
        self._subscriptions.publish(workspace_id)
        self.changed()
        self.wake()

    # The agent

    def spec(self, files_dir: str, **fields: Any) -> PodSpec:
        """The spec of the agent."""
        runtime_secret, signal_secret = self._secrets[self.epoch]
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
        """Fences the agent, and drops its task. The next agent gets new secrets."""
        await self._close_channel()
        await self.store.transition(
            WORKSPACE_ID, lambda locked: Change(locked.workspace.in_new_epoch("", _now()), None)
        )
        self._secrets[self.epoch] = _new_secrets()

    @property
    def _workspace(self) -> Workspace:
        return self.store.workspaces[WORKSPACE_ID]

    @property
    def epoch(self) -> int:
        """The epoch of the agent."""
        return self._workspace.epoch

    @property
    def address(self) -> str:
        """The address of the agent; empty until it has registered."""
        return self._workspace.agent_address or ""

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
        return signal_token(self._secrets[self.epoch][1], minute_of(self._clock()))

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
        return self.store.tasks.get(self._workspace.current_task_id or "")

    async def assign(
        self, description: str, task_id: str = "", max_iterations: int = DEFAULT_MAX_ITERATIONS
    ) -> Task:
        """Gives the workspace a task. The next directive assigns it to the agent."""
        self._tasks += 1
        task = Task(
            id=task_id or f"task_{self._tasks}",
            workspace_id=WORKSPACE_ID,
            description=description,
            max_iterations=max_iterations,
            created_at=_now(),
        )
        await self.store.transition(
            WORKSPACE_ID, lambda locked: task_lifecycle.submit(locked, task, "check")
        )
        return task

    async def start(self, task: Task, traceparent: str = "") -> bool:
        """Signals a task to the agent. Returns whether the agent accepts the task.

        Raises NotAcknowledgedError.
        """
        assignment = encode_assignment(task, _now())
        return (await self.signal(Signal(start_task=assignment), traceparent)).known

    async def cancel(
        self, task_id: str, force_after_seconds: float | None = None, traceparent: str = ""
    ) -> bool:
        """Records the intent, then signals the agent. Returns whether the agent has the task.

        Raises NotAcknowledgedError.
        """
        now = _now()
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
        permission = _CALLER.permission("workspace:write")
        recorded = await self.store.record_cancellation(permission, WORKSPACE_ID, task_id, intent)
        cancellation: Any = {"reason": intent.reason}
        if recorded.outcome in ("accepted", "already_requested"):
            assert recorded.task is not None
            cancellation = cancellation_fields(recorded.task, now)
        signal = Signal(cancel_task=CancelTask(task_id=task_id, cancellation=cancellation))
        return (await self.signal(signal, traceparent)).known

    async def end_open_task(self, reason: str) -> None:
        """Ends the task of an agent whose pod has ended, as the fleet controller does."""
        now = _now() + timedelta(milliseconds=1)
        await self.store.transition(
            WORKSPACE_ID,
            lambda locked: task_lifecycle.end_open_task(locked, reason, now, work_stopped=True),
        )

    # The calls of the agent

    def servicer(self) -> RuntimeServicer:
        """RuntimeService as a worker serves it, with the current length of a lease."""
        return RuntimeServicer(
            Runtime(self.store, _now, self.lease_seconds),
            self.spec_for,
            Children(self.store, _NoAgents(), self._subscriptions, _now),
        )

    def spec_for(self, agent: AgentIdentity) -> PodSpec:
        """The answer to Bootstrap."""
        return self.spec("")

    async def answer(self, name: str, call: Call) -> Any:
        """Answers a call of the agent. `name` is the name of the method."""
        await self.abort_in_outage(call)
        try:
            call.agent = self.identify(name, call.metadata.get("authorization", ""))
            reply = await self.reply_to(name, call)
        except Failure as failure:
            await self._refuse(name, call, failure)
        if name == "CommitEvents":
            # If an outage began during the commit, the agent gets an error instead of the reply.
            await self.abort_in_outage(call)
        if name in ("Register", "Heartbeat", "CommitEvents"):
            reply.directive.lease_length_ms = int(self.lease_length_seconds * 1000)
        self.wake()
        return reply

    async def reply_to(self, name: str, call: Call) -> Any:
        """The reply of RuntimeService. Raises Failure."""
        return await getattr(self.servicer(), name)(call.request, call.context)

    def identify(self, name: str, authorization: str) -> AgentIdentity:
        """The agent that the token belongs to. Raises Failure unauthenticated."""
        token = authorization.removeprefix("Bearer ")
        workspace_id, epoch, minute = parse_runtime_token(token) or ("", 0, 0)
        secret, _ = self._secrets.get(epoch, (b"", b""))
        expected = runtime_token(workspace_id, epoch, secret, minute)
        if workspace_id != WORKSPACE_ID or not secret or not hmac.compare_digest(token, expected):
            raise errors.unauthenticated("The token is not authentic.")
        now = self._clock()
        if minute not in accepted_minutes(now):
            message = "The token is expired or not yet valid."
            raise Failure("unauthenticated", message, unix_seconds=int(now))
        return AgentIdentity(workspace_id, epoch)

    async def abort_in_outage(self, call: Call) -> None:
        """Refuses the call during an outage."""
        if self.outage is not None:
            await call.context.abort(self.outage, "The database is not available.")

    async def _refuse(self, name: str, call: Call, failure: Failure) -> NoReturn:
        is_breach = isinstance(failure.__cause__, BreachError)
        if is_breach or name == "CommitEvents":
            self.breaches.append(str(failure.__cause__ if is_breach else failure))
        self.wake()
        trailers: list[tuple[str, str]] = [(SLUG_TRAILER, failure.slug)]
        if "unix_seconds" in failure.details:
            trailers.append((TIME_TRAILER, str(failure.details["unix_seconds"])))
        await call.context.abort(GRPC_CODES[failure.slug], failure.message, tuple(trailers))
        raise AssertionError("abort always raises")


def _now() -> datetime:
    return datetime.now(UTC)


def _new_secrets() -> tuple[bytes, bytes]:
    return token_bytes(SECRET_BYTES), token_bytes(SECRET_BYTES)


def _workspace() -> Workspace:
    now = _now()
    return Workspace(
        id=WORKSPACE_ID,
        org_id=_CALLER.org_id,
        name="check",
        status=WorkspaceStatus.PROVISIONING,
        created_by_user_id=None,
        created_at=now,
        updated_at=now,
        epoch=1,
    )
