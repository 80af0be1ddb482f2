"""A control plane of one workspace, in memory: it serves RuntimeService and calls AgentService."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from evershell.agent.v1.agent_service_pb2 import (
    Assignment,
    Cancellation,
    CancelTaskRequest,
    StartTaskRequest,
)
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from evershell.agent.v1.runtime_service_pb2 import (
    BootstrapRequest,
    BootstrapResponse,
    CommitEventsRequest,
    CommitEventsResponse,
    Directive,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
    TaskEvent,
)
from evershell.agent.v1.runtime_service_pb2_grpc import (
    RuntimeServiceServicer,
    add_RuntimeServiceServicer_to_server,
)

from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.core.errors import Failure
from evershell.pod.tls import Connector, TlsIdentity, agent_name, listen
from evershell.pod.tokens import TIME_TRAILER

if TYPE_CHECKING:
    from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

WORKSPACE_ID = "ws_1"
EPOCH = 3
Context = grpc.aio.ServicerContext[Any, Any]


class ControlPlane(RuntimeServiceServicer):
    """Tests set its task and its faults, and read its log of events and of calls."""

    def __init__(self) -> None:
        # How far its clock is ahead of that of the agent.
        self.ahead_seconds = 0.0
        self.tokens = PodTokens(new_key(), lambda: time.time() + self.ahead_seconds)
        self.secrets = {
            "runtime_secret": self.tokens.runtime_secret(WORKSPACE_ID, EPOCH).hex(),
            "signal_secret": self.tokens.signal_secret(WORKSPACE_ID, EPOCH).hex(),
        }
        # Longer than any test, so that no stall of the machine ends an agent.
        self.lease_ms = 60_000
        # Agents send a heartbeat each sixth of it. 0: not told, so it is `lease_ms`.
        self.lease_length_ms = 0
        self.task: Assignment | None = None
        self.log: list[tuple[str, TaskEvent]] = []
        self.calls: list[str] = []
        self.heartbeats: list[HeartbeatRequest] = []
        # Each event that was sent, with its traceparent.
        self.traces: list[tuple[str, str]] = []
        self.address = ""
        self.fenced = False
        # If set, every call fails with this code.
        self.refusal: grpc.StatusCode | None = None
        # The number of further commits that take effect but lose their acknowledgement.
        self.lost_acknowledgements = 0
        # The number of further answers to Bootstrap that are lost.
        self.lost_bootstraps = 0
        # Awaited with the call's name after its reply is made and before it is sent.
        self.before_reply: Callable[[str], Awaitable[None]] | None = None
        # Its certificate; None for plain text.
        self.tls: TlsIdentity | None = None
        self._changed = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []
        self._channels: list[grpc.aio.Channel] = []

    async def serve(self) -> str:
        server = grpc.aio.server()
        add_RuntimeServiceServicer_to_server(self, server)
        port = listen(server, "127.0.0.1:0", self.tls)
        await server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        for server in self._servers:
            await server.stop(grace=None)

    async def until(self, condition: Callable[[], object], timeout_seconds: float = 30) -> None:
        """Waits until the condition is true. Checks it after every call of the agent."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # RuntimeService

    async def Bootstrap(self, request: BootstrapRequest, context: Context) -> BootstrapResponse:
        self.calls.append("Bootstrap")
        self._changed.set()
        authorization = str(dict(context.invocation_metadata() or ())["authorization"])
        try:
            self.tokens.identify_bootstrapping(authorization.removeprefix("Bearer "))
        except Failure as refused:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refused.message)
        if self.lost_bootstraps:
            self.lost_bootstraps -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        if self.address:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token was spent")
        spec = {
            "workspace_id": WORKSPACE_ID,
            "epoch": EPOCH,
            "runtime_addresses": ["not.used:1"],
            **self.secrets,
        }
        return BootstrapResponse(spec=json.dumps(spec))

    async def Register(self, request: RegisterRequest, context: Context) -> RegisterResponse:
        await self._enter("Register", context)
        self.address = request.address
        return RegisterResponse(directive=await self._reply("Register"))

    async def Heartbeat(self, request: HeartbeatRequest, context: Context) -> HeartbeatResponse:
        await self._enter("Heartbeat", context)
        self.heartbeats.append(request)
        return HeartbeatResponse(directive=await self._reply("Heartbeat"))

    async def CommitEvents(
        self, request: CommitEventsRequest, context: Context
    ) -> CommitEventsResponse:
        await self._enter("CommitEvents", context)
        traceparent = str(dict(context.invocation_metadata() or ()).get("traceparent", ""))
        self.traces += [(str(event.WhichOneof("event")), traceparent) for event in request.events]
        for event in request.events:
            self._commit(request.task_id, event)
        directive = await self._reply("CommitEvents")
        if self.lost_acknowledgements:
            self.lost_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the acknowledgement is lost")
        return CommitEventsResponse(directive=directive)

    async def _enter(self, call: str, context: Context) -> None:
        self.calls.append(call)
        self._changed.set()
        if self.refusal is not None:
            await context.abort(self.refusal, "refused")
        authorization = str(dict(context.invocation_metadata() or ())["authorization"])
        try:
            self.tokens.identify(authorization.removeprefix("Bearer "))
        except Failure as refused:
            now = refused.details.get("unix_seconds")
            trailers = () if now is None else ((TIME_TRAILER, str(now)),)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refused.message, trailers)

    async def _reply(self, call: str) -> Directive:
        directive = Directive(
            fenced=self.fenced,
            lease_ms=self.lease_ms,
            lease_length_ms=self.lease_length_ms,
            task=self.task,
        )
        self._changed.set()
        if self.before_reply is not None:
            await self.before_reply(call)
        return directive

    def _commit(self, task_id: str, event: TaskEvent) -> None:
        """Commits an event by the rules of evershell.core.task_lifecycle.commit."""
        if self.fenced or self.task is None or self.task.task_id != task_id:
            return
        if event.HasField("task_started") and any(
            task_id == known and e.HasField("task_started") for known, e in self.log
        ):
            return
        if event.HasField("iteration_completed"):
            if event.iteration_completed.number <= self.task.iterations:
                return
            self.task.iterations += 1
            assert event.iteration_completed.number == self.task.iterations
        self.log.append((task_id, event))
        if event.HasField("task_ended"):
            self.task = None

    # The log of events

    def kinds(self, task_id: str) -> list[str]:
        return [str(event.WhichOneof("event")) for known, event in self.log if known == task_id]

    def iterations(self, task_id: str) -> list[Any]:
        return [
            e.iteration_completed
            for known, e in self.log
            if known == task_id and e.HasField("iteration_completed")
        ]

    def end(self, task_id: str) -> Any:
        return next(
            (
                e.task_ended
                for known, e in self.log
                if known == task_id and e.HasField("task_ended")
            ),
            None,
        )

    # AgentService

    def submit(self, task_id: str, description: str, max_iterations: int = 100) -> Assignment:
        self.task = Assignment(
            task_id=task_id, description=description, max_iterations=max_iterations
        )
        return self.task

    def agent(self) -> "AgentServiceAsyncStub":
        name = agent_name(WORKSPACE_ID, EPOCH)
        channel = Connector(self.tls).open(self.address, name, ())
        self._channels.append(channel)
        stub: AgentServiceAsyncStub = AgentServiceStub(channel)
        return stub

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self.tokens.signal_metadata(WORKSPACE_ID, EPOCH)

    async def start_task(
        self,
        agent: "AgentServiceAsyncStub",
        task: Assignment,
        epoch: int = EPOCH,
        traceparent: str = "",
    ) -> None:
        request = StartTaskRequest(workspace_id=WORKSPACE_ID, epoch=epoch, task=task)
        await agent.StartTask(request, metadata=(*self.metadata(), ("traceparent", traceparent)))

    async def cancel_task(
        self,
        agent: "AgentServiceAsyncStub",
        task_id: str,
        force_after_seconds: float | None = None,
        traceparent: str = "",
    ) -> bool:
        """Records the intent, then signals the agent. Returns whether the agent knew the task."""
        cancellation = Cancellation(reason="enough")
        if force_after_seconds is not None:
            cancellation.force_after_ms = int(force_after_seconds * 1000)
        if self.task is not None and self.task.task_id == task_id:
            self.task.cancellation.CopyFrom(cancellation)
        request = CancelTaskRequest(
            workspace_id=WORKSPACE_ID, epoch=EPOCH, task_id=task_id, cancellation=cancellation
        )
        return (
            await agent.CancelTask(
                request, metadata=(*self.metadata(), ("traceparent", traceparent))
            )
        ).known
