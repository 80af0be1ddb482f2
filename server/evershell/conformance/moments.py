"""The control plane of the suite: it cancels tasks at given moments, and simulates outages."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
from evershell.agent.v1.agent_service_pb2 import Signal
from evershell.agent.v1.runtime_service_pb2 import HeartbeatRequest

from evershell.api.call import Call
from evershell.conformance.control_plane import WORKSPACE_ID, ControlPlane
from evershell.core.event import EventType
from evershell.core.task import Phase, Task
from evershell.pod.messages import PHASES, encode_phase
from evershell.pod.signal_stream import NotAcknowledgedError

_WORKERS = 2


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
    """A task, and the control plane's observations of it."""

    description: str
    # When the task is cancelled; None if it is never cancelled.
    moment: Moment | None = None
    force: bool = False
    task_id: str = ""
    iterations: list[dict[str, Any]] = field(default_factory=list)
    # The task after its end.
    ended: Task | None = None
    # The number of iterations at the time of the cancellation; None until the task is cancelled.
    cancelled_after: int | None = None
    cancelled_at: float = 0.0
    # The number of commits that the agent made after the end was acknowledged.
    repeats: int = 0


class SuiteControlPlane(ControlPlane):
    """A control plane with two workers. The suite injects faults."""

    def __init__(self) -> None:
        super().__init__()
        # Whether an outage begins right after the next commit of an iteration.
        self.has_outage_after_iteration = False
        self.refused_calls = 0
        self.run = Run("")
        # Whether the agent has ever acknowledged a signal with its phase.
        self._has_phase = False

    async def serve_all(self) -> None:
        """Starts the workers."""
        for _ in range(_WORKERS):
            await self.serve()

    async def submit(self, run: Run) -> None:
        """Gives the agent a task. If the signal fails, the next directive delivers the task."""
        task = await self.assign(run.description)
        run.task_id = task.id
        self.run = run
        try:
            if not await self.start(task):
                self.breaches.append("the start of a task was not taken")
        except NotAcknowledgedError as error:
            self.breaches.append(f"the start of a task was not acknowledged: {error}")

    async def _cancel_run(self) -> None:
        """Cancels the current task."""
        run, task = self.run, self.task
        if task is None:
            return
        if run.cancelled_after is None:
            run.cancelled_after = task.iterations
        run.cancelled_at = time.monotonic()
        try:
            await self.cancel(task.id, 0.0 if run.force else None)
        except NotAcknowledgedError as error:
            self.breaches.append(f"a cancellation was not acknowledged: {error}")

    async def abort_in_outage(self, call: Call) -> None:
        """Refuses the call during an outage, and counts it."""
        if self.outage is not None:
            self.refused_calls += 1
            self.wake()
        await super().abort_in_outage(call)

    async def reply_to(self, name: str, call: Call) -> Any:
        """The reply of RuntimeService.

        If the moment of the cancellation has come, cancels the task before or after the call.
        """
        match name:
            case "Heartbeat":
                await self._notice(call.request)
            case "CommitEvents":
                return await self._commit(call)
        return await super().reply_to(name, call)

    async def _notice(self, request: HeartbeatRequest) -> None:
        """Cancels the task if the agent reports the phase in which the task must be cancelled."""
        run, task, phase = self.run, self.task, PHASES.get(request.phase, Phase.NONE)
        is_current = task is not None and task.id == request.task_id
        if (
            is_current
            and phase is not Phase.NONE
            and await self._is_in(phase)
            and run.cancelled_after is None
            and phase is _PHASES.get(run.moment)
        ):
            await self._cancel_run()

    async def _is_in(self, phase: Phase) -> bool:
        """Signals the agent. Returns whether it is still in the phase.

        Also returns True if the agent has never acknowledged a signal with a phase: then only its
        heartbeats report the phase.
        """
        with suppress(NotAcknowledgedError):
            current = (await self.signal(Signal())).phase
            self._has_phase = self._has_phase or bool(current)
            return current == encode_phase(phase) or not self._has_phase
        return False

    async def _commit(self, call: Call) -> Any:
        run, task, agent = self.run, self.task, call.agent
        kinds = [event.WhichOneof("event") for event in call.request.events]
        is_current = agent is not None and agent.epoch == self.epoch
        if task is None or task.id != call.request.task_id or not is_current:
            run.repeats += 1
            return await super().reply_to("CommitEvents", call)
        is_end, has_iteration = "task_ended" in kinds, "iteration_completed" in kinds
        if run.moment is Moment.END and is_end:
            await self._cancel_run()
        reply = await super().reply_to("CommitEvents", call)
        here = Moment.BETWEEN if has_iteration else Moment.START
        if run.cancelled_after is None and not is_end and run.moment is here:
            await self._cancel_run()
            # Repeats the commit, to get a reply that carries the cancellation. The repeat has no
            # other effect.
            reply = await super().reply_to("CommitEvents", call)
        if has_iteration and self.has_outage_after_iteration:
            self.has_outage_after_iteration = False
            self.outage = grpc.StatusCode.UNAVAILABLE
        return reply

    def changed(self) -> None:
        """Notes the iterations and the end of the task."""
        run = self.run
        run.iterations = [
            dict(event.payload)
            for event in self.store.events[WORKSPACE_ID]
            if event.task_id == run.task_id and event.type is EventType.ITERATION_COMPLETED
        ]
        task = self.store.tasks.get(run.task_id)
        if task is not None and task.status.is_terminal:
            run.ended = task
