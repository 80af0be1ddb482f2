"""The types of events, from event.proto."""

from enum import StrEnum


class EventType(StrEnum):
    """The values of EventType.Type in the protos."""

    # Read during an upgrade, by a worker of the old version, if a worker of the new version has
    # recorded an event of a new type.
    UNSPECIFIED = "type_unspecified"
    WORKSPACE_PROVISIONED = "workspace_provisioned"
    WORKSPACE_STOPPED = "workspace_stopped"
    WORKSPACE_FAILED = "workspace_failed"
    WORKSPACE_RESUMED = "workspace_resumed"
    TASK_SUBMITTED = "task_submitted"
    TASK_STARTED = "task_started"
    ITERATION_COMPLETED = "iteration_completed"
    TASK_CANCEL_REQUESTED = "task_cancel_requested"
    TASK_COMPLETED = "task_completed"
    TASK_LIMIT_APPROACHED = "task_limit_approached"

    @classmethod
    def _missing_(cls, value: object) -> "EventType":
        return cls.UNSPECIFIED
