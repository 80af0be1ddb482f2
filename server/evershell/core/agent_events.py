"""The events that an agent commits. An agent imports them without the rest of the life cycle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evershell.core.task import TaskStatus


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """The agent commits that it starts the task."""


@dataclass(frozen=True, slots=True)
class IterationCompleted:
    """The agent commits an iteration that has ended.

    `number` counts from 1. `payload` has the fields of the message IterationCompleted, and
    `size_bytes` is the size of that message.
    """

    number: int
    payload: Mapping[str, Any]
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """The agent, or the control plane on its behalf, proposes the end of the task.

    A recorded intent to cancel overrides the status.
    """

    status: TaskStatus
    reason: str = ""
    result: str = ""
    forced: bool = False
    # Whether all processes of the task are known to have ended.
    work_stopped: bool = True


AgentEvent = TaskStarted | IterationCompleted | TaskEnded
