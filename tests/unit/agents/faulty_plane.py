"""The control plane of `evershell agent check`, with faults and records for tests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest
from evershell.workspace.v1 import event_pb2
from google.protobuf import json_format

from evershell.api.call import Call
from evershell.conformance import control_plane
from evershell.conformance.control_plane import WORKSPACE_ID
from evershell.core import errors
from evershell.core.event import Event, EventType
from evershell.core.runtime import AgentIdentity
from evershell.pod.spec import PodSpec
from evershell.pod.tokens import bootstrap_token, secret_of

EPOCH = 1


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
        # The type of each event that the agent has sent, with the traceparent of the call.
        self.traces: list[tuple[str, str]] = []
        # How many of the next commits take effect without an acknowledgement.
        self.lost_acknowledgements = 0
        # How many of the next calls of Bootstrap get no answer.
        self.lost_bootstraps = 0
        # Additional fields for the agent's spec.
        self.more: dict[str, Any] = {}
        # Awaited with the name of a call, after the reply is known and before it is sent.
        self.before_reply: Callable[[str], Awaitable[None]] = at_once

    async def answer(self, name: str, call: Call) -> Any:
        """Records the call and answers it. Loses as many answers as the test has set."""
        self.calls.append(name)
        self.wake()
        if name == "Bootstrap" and self.lost_bootstraps:
            self.lost_bootstraps -= 1
            await call.context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        if name == "Heartbeat":
            self.heartbeats.append(call.request)
        if name == "CommitEvents":
            traceparent = call.metadata.get("traceparent", "")
            self.traces += [
                (str(event.WhichOneof("event")), traceparent) for event in call.request.events
            ]
        reply = await super().answer(name, call)
        await self.before_reply(name)
        if name == "CommitEvents" and self.lost_acknowledgements:
            self.lost_acknowledgements -= 1
            await call.context.abort(grpc.StatusCode.UNAVAILABLE, "the acknowledgement is lost")
        return reply

    def identify(self, name: str, authorization: str) -> AgentIdentity:
        if name != "Bootstrap":
            return super().identify(name, authorization)
        if authorization != f"Bearer {self.bootstrap_token}":
            raise errors.unauthenticated("The token is not authentic.")
        return AgentIdentity(WORKSPACE_ID, EPOCH)

    def spec_for(self, agent: AgentIdentity) -> PodSpec:
        return replace(self.spec("", **self.more), runtime_addresses=["not.used:1"])

    async def spend_bootstrap_token(self) -> None:
        """Registers an agent at another address, after which the bootstrap token is refused."""
        await self.servicer().runtime.register(AgentIdentity(WORKSPACE_ID, EPOCH), "127.0.0.1:1")

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
        task = await self.assign(description, task_id, **fields)
        await self.start(task, traceparent=traceparent)

    # What the control plane has recorded

    @property
    def events(self) -> Sequence[Event]:
        """All events of the workspace."""
        return self.store.events[WORKSPACE_ID]

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
        task = self.store.tasks.get(task_id)
        return task if task is not None and task.status.is_terminal else None


async def at_once(_: str) -> None:
    await asyncio.sleep(0)
