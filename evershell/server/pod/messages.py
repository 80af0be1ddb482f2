"""Messages from the control plane to agents, in replies and in calls."""

from datetime import UTC, datetime

from evershell.agent.v1 import agent_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.server.core.task import Task

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The time as a protobuf message; None for an absent field."""
    if moment is None:
        return None
    # `FromDatetime` takes more than three times as long.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


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
