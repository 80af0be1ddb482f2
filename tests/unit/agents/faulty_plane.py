"""The control plane of `evershell agent check`, with faults and records for tests."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import grpc
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
from evershell.workspace.v1 import event_pb2
from google.protobuf import json_format

from evershell.conformance import control_plane
from evershell.conformance.control_plane import WORKSPACE_ID, Context
from evershell.core.change import Change
from evershell.core.event import EventType, NewEvent
from evershell.core.task import Task
from evershell.pod.tokens import bootstrap_token, secret_of

EPOCH = 1


class _Worker(control_plane.Worker):
    """Records each call before it is answered, and can lose answers."""

    _plane: "ControlPlane"

    async def Bootstrap(self, request: BootstrapRequest, context: Context) -> BootstrapResponse:
        plane = self._plane
        plane.note_call("Bootstrap")
        given = str(dict(context.invocation_metadata() or ())["authorization"])
        if given != f"Bearer {plane.bootstrap_token}" or plane.is_spent:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        if plane.lost_bootstraps:
            plane.lost_bootstraps -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        spec = asdict(plane.spec("", **plane.more)) | {"runtime_addresses": ["not.used:1"]}
        return BootstrapResponse(spec=json.dumps(spec))

    async def Register(self, request: RegisterRequest, context: Context) -> RegisterResponse:
        self._plane.note_call("Register")
        response = await super().Register(request, context)
        await self._plane.before_reply("Register")
        return response

    async def Heartbeat(self, request: HeartbeatRequest, context: Context) -> HeartbeatResponse:
        self._plane.note_call("Heartbeat")
        self._plane.heartbeats.append(request)
        response = await super().Heartbeat(request, context)
        await self._plane.before_reply("Heartbeat")
        return response

    async def CommitEvents(
        self, request: CommitEventsRequest, context: Context
    ) -> CommitEventsResponse:
        plane = self._plane
        plane.note_call("CommitEvents")
        traceparent = str(dict(context.invocation_metadata() or ()).get("traceparent", ""))
        plane.traces += [(str(event.WhichOneof("event")), traceparent) for event in request.events]
        response = await super().CommitEvents(request, context)
        await plane.before_reply("CommitEvents")
        if plane.lost_acknowledgements:
            plane.lost_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the acknowledgement is lost")
        return response


class ControlPlane(control_plane.ControlPlane):
    """A control plane whose faults tests set, and whose records tests read."""

    def __init__(self) -> None:
        super().__init__(lambda: time.time() + self.ahead_seconds)
        # How far the control plane's clock is ahead of the agent's clock.
        self.ahead_seconds = 0.0
        # A long lease, so that there are few heartbeats. A test may change it.
        self.lease_seconds = self.lease_length_seconds = 60.0
        self.calls: list[str] = []
        self.heartbeats: list[HeartbeatRequest] = []
        # Each event that the agent has sent, with the traceparent of its call.
        self.traces: list[tuple[str, str]] = []
        # The committed events, and the tasks that have ended.
        self.events: list[NewEvent] = []
        self.ended: dict[str, Task] = {}
        # How many more commits take effect but get no acknowledgement.
        self.lost_acknowledgements = 0
        # How many more calls of Bootstrap get no answer.
        self.lost_bootstraps = 0
        # Whether the bootstrap token has been used.
        self.is_spent = False
        # Further fields for the spec.
        self.more: dict[str, Any] = {}
        # Awaited with the name of a call, after the reply is known and before it is sent.
        self.before_reply: Callable[[str], Awaitable[None]] = at_once

    def new_worker(self) -> control_plane.Worker:
        return _Worker(self)

    def note_call(self, name: str) -> None:
        self.calls.append(name)
        self.wake()

    def committed(self, change: Change) -> None:
        self.events += change.events
        if change.task is not None and change.task.status.is_terminal:
            self.ended[change.task.id] = change.task

    async def reaches(self, condition: Callable[[], object]) -> None:
        """Waits until the condition is true."""
        assert await self.until(condition, 30), self.events

    @property
    def bootstrap_token(self) -> str:
        return bootstrap_token(WORKSPACE_ID, EPOCH, secret_of(self.spec("").runtime_secret))

    async def run_task(
        self, task_id: str, description: str, traceparent: str = "", **fields: Any
    ) -> None:
        """Gives the agent a task."""
        task = self.assign(description, task_id, **fields)
        await self.start(task, traceparent=traceparent)

    # The records

    def kinds(self, task_id: str) -> list[str]:
        """The types of the events that the agent has committed for the task."""
        by_agent = EventType.TASK_STARTED, EventType.ITERATION_COMPLETED, EventType.TASK_COMPLETED
        return [
            str(each.type)
            for each in self.events
            if each.task_id == task_id and each.type in by_agent
        ]

    def iterations(self, task_id: str) -> list[event_pb2.IterationCompleted]:
        return [
            json_format.ParseDict(dict(each.payload), event_pb2.IterationCompleted())
            for each in self.events
            if each.task_id == task_id and each.type is EventType.ITERATION_COMPLETED
        ]

    def end(self, task_id: str) -> Any:
        """The task as it was when it ended; None if it has not ended."""
        return self.ended.get(task_id)


async def at_once(_: str) -> None:
    await asyncio.sleep(0)
