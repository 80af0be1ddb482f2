"""Encodes the events that an agent commits."""

from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import event_pb2, task_pb2

from evershell.core.agent_events import (
    AgentEvent,
    IterationCompleted,
    TaskEnded,
    TaskStarted,
)


def encode_event(event: AgentEvent) -> runtime_service_pb2.TaskEvent:
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
