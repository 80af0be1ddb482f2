"""The state that A2A shows for each status of a task."""

from a2a.types import a2a_pb2

from evershell.core.task import TaskStatus

STATES = {
    TaskStatus.SUBMITTED: a2a_pb2.TASK_STATE_SUBMITTED,
    TaskStatus.DELIVERED: a2a_pb2.TASK_STATE_SUBMITTED,
    TaskStatus.RUNNING: a2a_pb2.TASK_STATE_WORKING,
    TaskStatus.COMPLETED: a2a_pb2.TASK_STATE_COMPLETED,
    TaskStatus.FAILED: a2a_pb2.TASK_STATE_FAILED,
    TaskStatus.CANCELLED: a2a_pb2.TASK_STATE_CANCELED,
    TaskStatus.DELIVERY_FAILED: a2a_pb2.TASK_STATE_FAILED,
}


def statuses_in(state: int) -> frozenset[TaskStatus]:
    """The statuses that A2A shows as this state. A task in cancellation counts as running."""
    return frozenset(status for status, shown in STATES.items() if shown == state)
