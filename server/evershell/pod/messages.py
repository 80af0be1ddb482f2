"""Messages between the control plane and agents."""

from datetime import datetime, timedelta
from typing import Any

from evershell.agent.v1 import agent_service_pb2
from evershell.workspace.v1 import task_pb2

from evershell.core.task import Phase, Task


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
    """The recorded intent to cancel, for the constructor of a message; None if there is none."""
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
