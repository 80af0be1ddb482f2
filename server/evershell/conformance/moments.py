"""The control plane of the suite: it cancels tasks at given moments, and has outages."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import grpc
from evershell.agent.v1.agent_service_pb2 import Signal

from evershell.conformance.control_plane import Context, ControlPlane
from evershell.core.change import Change
from evershell.core.task import AgentEvent, IterationCompleted, Phase, Task, TaskEnded
from evershell.pod.messages import encode_phase
from evershell.pod.signal_stream import NotAcknowledgedError

if TYPE_CHECKING:
    from evershell.agent.v1 import runtime_service_pb2

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
    # When the task is cancelled; None for never.
    moment: Moment | None = None
    force: bool = False
    iterations: list[dict[str, Any]] = field(default_factory=list)
    # The task after its end.
    ended: Task | None = None
    # The number of iterations at the time of the cancellation; None if the task is not cancelled.
    cancelled_after: int | None = None
    cancelled_at: float = 0.0
    # The number of commits that the agent made after the end was acknowledged.
    repeats: int = 0


class SuiteControlPlane(ControlPlane):
    """A control plane with two workers. The suite sets the faults."""

    def __init__(self) -> None:
        super().__init__()
        # Whether the outage begins with the next commit of an iteration.
        self.has_outage_after_iteration = False
        self.refused_calls = 0
        self.renewed_at = 0.0
        self.run = Run("")
        # Whether any acknowledgement so far has had a phase.
        self._has_phase = False

    async def serve_all(self) -> None:
        """Starts the workers."""
        for _ in range(_WORKERS):
            await self.serve()

    async def submit(self, run: Run) -> None:
        """Gives the agent a task. If the signal fails, the next directive delivers the task."""
        self.run = run
        try:
            if not await self.start(self.assign(run.description)):
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

    async def abort_in_outage(self, context: Context) -> None:
        """Counts the calls that are refused."""
        if self.outage is not None:
            self.refused_calls += 1
            self.wake()
        await super().abort_in_outage(context)

    async def notice(self, task_id: str, phase: Phase) -> None:
        """Cancels the task if the agent reports the phase in which the task must be cancelled."""
        self.wake()
        run, task = self.run, self.task
        is_current = task is not None and task.id == task_id
        if (
            is_current
            and phase is not Phase.NONE
            and await self._is_in(phase)
            and run.cancelled_after is None
            and phase is _PHASES.get(run.moment)
        ):
            await self._cancel_run()

    async def _is_in(self, phase: Phase) -> bool:
        """Whether the agent is still in the phase.

        An agent whose acknowledgements have no phase is believed.
        """
        with suppress(NotAcknowledgedError):
            current = (await self.signal(Signal())).phase
            self._has_phase = self._has_phase or bool(current)
            return current == encode_phase(phase) or not self._has_phase
        return False

    async def commit(self, epoch: int, task_id: str, events: Sequence[AgentEvent]) -> None:
        """Cancels the task before or after the commit, if the moment has come."""
        run, task = self.run, self.task
        if task is None or task.id != task_id or epoch != self.epoch:
            run.repeats += 1
            self.wake()
            return
        is_end = any(isinstance(event, TaskEnded) for event in events)
        if run.moment is Moment.END and is_end:
            await self._cancel_run()
        await super().commit(epoch, task_id, events)
        for event in events:
            if isinstance(event, IterationCompleted) and event.number > len(run.iterations):
                run.iterations.append(dict(event.payload))
        has_iteration = any(isinstance(event, IterationCompleted) for event in events)
        here = Moment.BETWEEN if has_iteration else Moment.START
        if run.cancelled_after is None and not is_end and run.moment is here:
            await self._cancel_run()
        if has_iteration and self.has_outage_after_iteration:
            self.has_outage_after_iteration = False
            self.outage = grpc.StatusCode.UNAVAILABLE

    def committed(self, change: Change) -> None:
        """Notes the end of the task."""
        if change.task is not None and change.task.status.is_terminal:
            self.run.ended = change.task

    def directive(self, epoch: int, *, is_renewed: bool = True) -> "runtime_service_pb2.Directive":
        """Notes when the lease was renewed."""
        if is_renewed:
            self.renewed_at = time.monotonic()
        return super().directive(epoch, is_renewed=is_renewed)
