"""The enums of the results: the states of tasks and workspaces, and what a cancellation found."""

from enum import StrEnum


class TaskStatus(StrEnum):
    """The state of a task."""

    UNSPECIFIED = "unspecified"
    """A state that this version of the client does not know."""
    SUBMITTED = "submitted"
    """Recorded; the agent has not received it yet."""
    DELIVERED = "delivered"
    """The agent has received it and has not begun it."""
    RUNNING = "running"
    """The agent works on it."""
    COMPLETED = "completed"
    """Ended: the agent finished it."""
    FAILED = "failed"
    """Ended: it could not be finished; `reason` says why."""
    CANCELLED = "cancelled"
    """Ended: a cancellation was recorded before its end."""
    DELIVERY_FAILED = "delivery_failed"
    """Ended: the agent could not be reached, so it never began."""

    @property
    def has_ended(self) -> bool:
        """Whether a task in this state never changes again."""
        return self in _ENDED


_ENDED = {
    TaskStatus.COMPLETED,
    TaskStatus.FAILED,
    TaskStatus.CANCELLED,
    TaskStatus.DELIVERY_FAILED,
}


class TaskPhase(StrEnum):
    """What the current iteration of a task is doing."""

    UNSPECIFIED = "unspecified"
    """A phase that this version of the client does not know."""
    MODEL_CALL = "model_call"
    TOOL_CALL = "tool_call"


class WorkspaceStatus(StrEnum):
    """The state of a workspace."""

    UNSPECIFIED = "unspecified"
    """A state that this version of the client does not know."""
    PROVISIONING = "provisioning"
    """Its agent is being started and has not registered yet."""
    IDLE = "idle"
    """Its agent is waiting for a task."""
    BUSY = "busy"
    """Its agent is working on `current_task_id`."""
    STOPPING = "stopping"
    """Its agent is being ended."""
    STOPPED = "stopped"
    """It has no agent."""
    FAILED = "failed"
    """Its agent died or could not start; `status_reason` says why."""


class CancelOutcome(StrEnum):
    """What a cancellation found."""

    UNSPECIFIED = "unspecified"
    """An outcome that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """It was recorded before; requester, time and reason are those of the first call."""
    ALREADY_FINISHED = "already_finished"
    """The task had ended; `task.status` says how."""
    NO_ACTIVE_TASK = "no_active_task"
    """The workspace is idle: no task runs."""


class TaskOutcome(StrEnum):
    """What `cancel_tasks` found for a task."""

    UNSPECIFIED = "unspecified"
    """An outcome that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """It was recorded before."""
    MATCHED = "matched"
    """A dry run: without it, the call would have recorded the cancellation."""
