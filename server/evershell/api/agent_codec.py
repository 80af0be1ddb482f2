"""Converts between the messages of RuntimeService and the objects of the core."""

from collections.abc import Iterable
from datetime import datetime
from itertools import islice

from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import task_pb2

from evershell.api.values import duration_seconds, rest_fields
from evershell.core.agent_rules import MAX_EVENTS, BreachError
from evershell.core.cancel_task import CancelTask
from evershell.core.event import Origin
from evershell.core.runtime import Directive
from evershell.core.task import (
    MAX_TOOL_CALLS,
    AgentEvent,
    IterationCompleted,
    IterationReported,
    Phase,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)
from evershell.pod.messages import PHASES, encode_assignment

# The statuses that an agent may propose for the end of a task.
_PROPOSABLE = {
    int(task_pb2.Task.Status.Value(status)): status
    for status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
}


def decode_cancel_child(
    request: runtime_service_pb2.CancelChildRequest, origin: Origin
) -> CancelTask:
    """Decodes the request. Raises Failure validation_error."""
    return CancelTask(
        workspace_id=request.workspace_id,
        task_id=request.task_id,
        reason=request.reason,
        force_after_seconds=duration_seconds(request.force_after)
        if request.HasField("force_after")
        else None,
        origin=origin,
    )


def encode_directive(
    directive: Directive, lease_seconds: float, now: datetime
) -> runtime_service_pb2.Directive:
    """The directive in a reply to an agent. `lease_seconds` is the length of a lease."""
    message = runtime_service_pb2.Directive(
        fenced=directive.fenced,
        lease_ms=max(0, int((directive.lease_seconds or 0) * 1000)),
        lease_length_ms=int(lease_seconds * 1000),
    )
    if directive.task is not None:
        message.task.CopyFrom(encode_assignment(directive.task, now))
    return message


def decode_commit(request: runtime_service_pb2.CommitEventsRequest) -> list[AgentEvent]:
    """The events that the agent commits, and the iteration that it reports. Raises BreachError."""
    committed = decode_agent_events(request.events)
    if request.HasField("open_iteration"):
        committed.append(_decode_open_iteration(request.open_iteration))
    return committed


def decode_agent_events(events: Iterable[runtime_service_pb2.TaskEvent]) -> list[AgentEvent]:
    """The events of a commit. Raises BreachError."""
    # One event more than the limit is enough for the core to refuse the commit.
    return [_decode_agent_event(event) for event in islice(events, MAX_EVENTS + 1)]


def _decode_open_iteration(opened: runtime_service_pb2.OpenIteration) -> IterationReported:
    size_bytes = opened.ByteSize()
    # One call more than the limit is enough for the core to refuse the report.
    del opened.started_calls[MAX_TOOL_CALLS + 1 :]
    return IterationReported(opened.number, rest_fields(opened), size_bytes)


def _decode_agent_event(event: runtime_service_pb2.TaskEvent) -> AgentEvent:
    match event.WhichOneof("event"):
        case "task_started":
            return TaskStarted()
        case "iteration_completed":
            iteration = event.iteration_completed
            size_bytes = iteration.ByteSize()
            # One call more than the limit is enough for the core to refuse the iteration.
            del iteration.tool_calls[MAX_TOOL_CALLS + 1 :]
            payload = rest_fields(iteration)
            if not iteration.tool_calls:
                del payload["tool_calls"]
            return IterationCompleted(iteration.number, payload, size_bytes)
        case "task_ended":
            ended = event.task_ended
            status = _PROPOSABLE.get(ended.status)
            if status is None:
                raise BreachError(f"its agent proposed an end with the status {ended.status}")
            return TaskEnded(
                status=status, result=ended.result, reason=ended.reason, forced=ended.forced
            )
        case _:
            raise BreachError("its agent committed an event of an unknown kind")


def decode_phase(phase: int) -> Phase:
    """The phase that an agent reports. Raises BreachError."""
    decoded = PHASES.get(phase)
    if decoded is None:
        raise BreachError(f"its agent reported the unknown phase {phase}")
    return decoded
