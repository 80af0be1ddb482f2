"""Messages from the control plane to agents, in replies and in calls."""

from datetime import datetime

from evershell.agent.v1 import agent_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from server.core.task import Task


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The time as a protobuf message; None for an absent field."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def encode_assignment(task: Task) -> agent_service_pb2.Assignment:
    """The task for its agent."""
    return agent_service_pb2.Assignment(
        task_id=task.id,
        description=task.description,
        max_iterations=task.max_iterations,
        cancellation=encode_cancellation(task),
        iterations=task.iterations,
    )


def encode_cancellation(task: Task) -> agent_service_pb2.Cancellation | None:
    """The recorded intent to cancel; None if there is none."""
    if task.cancel is None:
        return None
    return agent_service_pb2.Cancellation(
        reason=task.cancel.reason, force_at=timestamp(task.cancel.force_at)
    )
