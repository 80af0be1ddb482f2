"""What has happened in a task, as the message that says so."""

from evershell.agent.v1.runtime_service_pb2 import TaskEnded, TaskEvent, TaskStarted
from evershell.workspace.v1.event_pb2 import IterationCompleted
from evershell.workspace.v1.task_pb2 import Task

from server.core.lifecycle import AgentEvent, Ending, Iterated, Started


def task_event(happened: AgentEvent) -> TaskEvent:
    """The message. An iteration's payload has the field names of IterationCompleted; its enums are
    names.
    """
    match happened:
        case Started():
            return TaskEvent(task_started=TaskStarted())
        case Iterated(number=number, payload=payload):
            return TaskEvent(iteration_completed=IterationCompleted(number=number, **payload))
        case Ending():
            ended = TaskEnded(
                status=Task.Status.Value(str(happened.status)),
                result=happened.result,
                reason=happened.reason,
                forced=happened.forced,
            )
            return TaskEvent(task_ended=ended)
