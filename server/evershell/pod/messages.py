"""Messages between the control plane and agents."""

from datetime import UTC, datetime, timedelta
from typing import Any

from evershell.agent.v1 import agent_service_pb2
from evershell.workspace.v1 import task_pb2

from evershell.core.task import Phase, Task

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime | None) -> Any:
    """The time for a Timestamp field in the constructor of a message; None for an absent field.

    The constructor takes the fields of a message as a mapping, which its type does not say. A
    message in its place is copied by serializing and parsing it, which takes longer.
    """
    if moment is None:
        return None
    since = moment - _EPOCH
    return {
        "seconds": since.days * 86_400 + since.seconds,
        "nanos": since.microseconds * 1000,
    }


def encode_assignment(task: Task, now: datetime) -> agent_service_pb2.Assignment:
    """The task for its agent."""
    return agent_service_pb2.Assignment(
        task_id=task.id,
        description=task.description,
        max_iterations=task.max_iterations,
        cancellation=cancellation_fields(task, now),
        iterations=task.iterations,
    )


def cancellation_fields(task: Task, now: datetime) -> Any:
    """The recorded intent to cancel, for a constructor like `timestamp`; None if there is none."""
    if task.cancel is None:
        return None
    return {
        "reason": task.cancel.reason,
        "force_after_ms": _milliseconds_until(task.cancel.force_at, now),
    }


def encode_phase(phase: Phase) -> "task_pb2.Task.Phase.ValueType":
    """The phase that an agent reports."""
    return task_pb2.Task.Phase.Value(str(phase) or "phase_unspecified")


def _milliseconds_until(moment: datetime | None, now: datetime) -> int | None:
    """Rounded up, so that nothing is interrupted too early. 0 for a time that has passed."""
    return None if moment is None else max(0, -((now - moment) // timedelta(milliseconds=1)))
