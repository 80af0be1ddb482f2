"""The results of the client, and their enums. Results are frozen; absent values are None."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar

from evershell.workspace.v1 import (
    audit_pb2,
    caller_pb2,
    hold_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.message import Message

from evershell.client._messages import Result, named


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
    """Ended: it could not be finished; `end_reason` says why."""
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
    SUSPENDED = "suspended"
    """It was idle for long, so it has no agent. The next task wakes it."""
    DELETING = "deleting"
    """It is being removed."""


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


@dataclass(frozen=True, slots=True)
class Usage(Result):
    """What a task has used so far."""

    _message_type: ClassVar[type[Message]] = task_pb2.Usage

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    cost: Decimal | None = None
    """What the model calls have cost, in USD, by the tokens that the agent has reported; None if it
    is unknown, because a model has no price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits(Result):
    """When the service itself cancels a task. None for never."""

    _message_type: ClassVar[type[Message]] = task_pb2.TaskLimits

    max_duration: timedelta | None = None
    """Since the task was started; at most 30 days."""
    max_total_tokens: int | None = None
    """Input and output tokens of all model calls, checked after each iteration."""
    max_cost: Decimal | None = None
    """What all model calls have cost, in USD, checked after each iteration."""
    force_after: timedelta | None = None
    """Interrupts an iteration that still runs this long after a limit was reached."""
    include_descendants: bool = False
    """Only for a task without a parent: the other limits count for the task and its descendants
    together, and the service cancels all of them."""


@dataclass(frozen=True, slots=True)
class Task(Result):
    """A piece of work for the agent of a workspace."""

    _message_type: ClassVar[type[Message]] = task_pb2.Task

    id: str
    workspace_id: str
    description: str = ""
    status: TaskStatus = TaskStatus.UNSPECIFIED
    phase: TaskPhase | None = None
    """None if no iteration is running."""
    iterations: int = 0
    """Number of committed iterations."""
    max_iterations: int = 0
    """A task that has not finished after this many iterations ends `failed`."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When the agent began it; None before that."""
    completed_at: datetime | None = None
    """When it ended; None before that."""
    cancel_requested_at: datetime | None = None
    """When its cancellation was recorded; None if it was not cancelled."""
    cancel_requested_by: str | None = None
    """The user id or API key id of the first requester."""
    cancel_reason: str = ""
    """The reason that the first requester gave."""
    cancel_force_at: datetime | None = None
    """When its iteration is interrupted if it still runs; None if it is not interrupted."""
    forced: bool = False
    """Whether its last iteration was interrupted."""
    end_reason: str = field(default="", metadata=named("reason"))
    """Why it ended with this status; human-readable, may be empty."""
    result: str = ""
    """The agent's final answer or, if the task ended early, the partial result."""
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The metadata given to submit_task."""
    submitted_by: str | None = None
    """The user id or API key id of the caller who submitted it; None if it is not known."""
    limits: TaskLimits | None = None
    """The limits given to submit_task."""
    parent_task_id: str | None = None
    """The task whose child it is; None for none."""
    root_task_id: str | None = None
    """The task at the root of its tree: its own id if it has no parent."""
    iteration_lost: bool = False
    """Whether an iteration was reported or in progress when the agent was lost. The iteration is
    not on record. `usage` includes what the agent had reported of it."""

    @property
    def has_ended(self) -> bool:
        """Whether the task never changes again."""
        return self.status.has_ended


@dataclass(frozen=True, slots=True)
class RunningCall(Result):
    """A model call or a tool call that runs."""

    _message_type: ClassVar[type[Message]] = task_pb2.RunningCall

    phase: TaskPhase
    name: str = ""
    """The name of the model or of the tool. Empty for a model that is not known before it
    answers."""
    arguments: str = ""
    """The arguments of a tool call, a JSON object: the first 4 KiB."""
    duration_ms: int = 0
    """How long it has run."""
    output: str = ""
    """The last 8 KiB of what a command has printed, or of what a model has written so far. Empty
    for a tool that is not a command, and for a model that does not stream."""


@dataclass(frozen=True, slots=True)
class CurrentIteration(Result):
    """What a task does now."""

    _message_type: ClassVar[type[Message]] = task_pb2.CurrentIteration

    workspace_id: str
    task_id: str
    number: int = 0
    """Counts from 1; 0 if the task has not begun or has ended."""
    phase: TaskPhase | None = None
    """The phase of the call that has begun last; None if none runs."""
    calls: tuple[RunningCall, ...] = ()
    """The calls that run, in the order in which they began, at most 16. Empty while none runs, and
    if the agent cannot report its calls."""


@dataclass(frozen=True, slots=True)
class Workspace(Result):
    """A place where an agent works, on one task at a time."""

    _message_type: ClassVar[type[Message]] = workspace_pb2.Workspace

    id: str
    org_id: str = ""
    name: str = ""
    """The name given to create_workspace, human-readable."""
    status: WorkspaceStatus = WorkspaceStatus.UNSPECIFIED
    status_reason: str = ""
    """Why it has this status; human-readable, may be empty."""
    created_by_user_id: str | None = None
    """None if it was created with an API key."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    current_task_id: str | None = None
    """The task that its agent is working on."""
    epoch: int = 0
    """Counts the starts of its agent, from 1."""


@dataclass(frozen=True, slots=True)
class CancelResult(Result):
    """The answer to a cancellation."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CancelTaskResponse

    workspace_id: str
    outcome: CancelOutcome
    task_id: str | None = None
    """None if there is no active task."""
    requested_at: datetime | None = None
    """When the cancellation was recorded; None if none was."""
    requested_by: str | None = None
    """The user id or API key id of the first requester."""
    reason: str = ""
    """The reason that the first requester gave."""
    task: Task | None = None
    """The task when the service answered."""
    descendants_cancelled: int = 0
    """With `include_descendants`: the descendants whose cancellation this call recorded."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""

    @property
    def is_recorded(self) -> bool:
        """Whether the cancellation is recorded, so that the task ends `cancelled`."""
        return self.outcome in (CancelOutcome.ACCEPTED, CancelOutcome.ALREADY_REQUESTED)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to wait for: the task has ended, or there was none."""
        return not self.is_recorded or (self.task is not None and self.task.has_ended)


@dataclass(frozen=True, slots=True)
class SubmittedTask(Result):
    """The answer to submit_task."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.SubmitTaskResponse

    task_id: str
    workspace_id: str
    status: TaskStatus = TaskStatus.UNSPECIFIED
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class AuditEntry(Result):
    """One authenticated call of a method that changes something, allowed or refused."""

    _message_type: ClassVar[type[Message]] = audit_pb2.AuditEntry

    id: str
    time: datetime | None = None
    """When the call arrived."""
    org_id: str = ""
    actor_id: str = ""
    """The user id or API key id of the caller."""
    credential_kind: str = ""
    """`session` or `api_key`."""
    credential_id: str | None = None
    """The API key id, or the `jti` of the session token."""
    rpc: str = ""
    """For example `CancelTask`."""
    workspace_id: str | None = None
    """As the caller named it, so it need not exist."""
    task_id: str | None = None
    outcome: str = ""
    """The outcome of CancelTask, `dry_run`, `ok`, the code of the error, or `caller_gone`."""
    reason: str = ""
    """The reason that the caller gave."""
    request_id: str = ""
    trace_id: str | None = None
    client_address: str = ""
    """The IP address of the client, as the edge saw it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerInfo(Result):
    """Who calls, as the credential says."""

    _message_type: ClassVar[type[Message]] = caller_pb2.Caller

    org_id: str
    actor_id: str
    """The user's id, or the id of the API key."""
    credential_kind: str = ""
    """`api_key` or `session`."""
    scopes: tuple[str, ...] = ()
    """`<resource>:<verb>`; with `:own` at the end, for workspaces that the caller has created."""
    expires_at: datetime | None = None
    """When the credential expires; None for never."""


@dataclass(frozen=True, slots=True)
class Hold(Result):
    """Whether an organization is on hold: it then gets no new task and no new agent."""

    _message_type: ClassVar[type[Message]] = hold_pb2.Hold

    org_id: str
    on_hold: bool = False
    held_by: str | None = None
    """The user id or API key id of the caller who put it on hold first."""
    held_since: datetime | None = None
    reason: str = ""
    """The reason that this caller gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter(Result):
    """Which tasks a call is about. A task matches if it matches every field that is not None.

    The calls refuse a filter without fields, and one with an empty field.
    """

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.TaskFilter

    task_ids: tuple[str, ...] | None = None
    """Only these tasks, at most 1,000. Tasks that do not exist or have ended match nothing."""
    workspace_ids: tuple[str, ...] | None = None
    """Only tasks of these workspaces, at most 1,000."""
    created_by_user_id: str | None = None
    """Only tasks in workspaces that this user has created."""
    submitted_by: str | None = None
    """Only tasks that this user or API key has submitted, by id."""
    submitted_before: datetime | None = None
    """Only tasks that were submitted before this time. A time without a zone is local time."""
    metadata: Mapping[str, str] | None = field(default=None, hash=False)
    """Only tasks whose metadata has all of these entries."""


@dataclass(frozen=True, slots=True)
class CancelledTask(Result):
    """What `cancel_tasks` found for one task."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CancelTasksResult

    workspace_id: str
    task_id: str
    outcome: TaskOutcome = TaskOutcome.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class CancelTasksResult(Result):
    """The answer to cancel_tasks."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CancelTasksResponse

    matched: int = 0
    """The tasks that match and have not ended: the sum of the next three."""
    accepted: int = 0
    """The tasks whose cancellation this call recorded."""
    already_requested: int = 0
    """The tasks whose cancellation was recorded before."""
    remaining: int = 0
    """The tasks that need a further call."""
    results: tuple[CancelledTask, ...] = ()
    """One for each task, at most 1,000."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class HoldResult(Result):
    """The answer to hold."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.HoldOrgResponse

    hold: Hold
    """The hold in force."""
    accepted: int = 0
    """With `cancel_running`: the tasks whose cancellation this call recorded."""
    already_requested: int = 0
    """The tasks whose cancellation was recorded before and that have not ended."""
    remaining: int = 0
    """The tasks that are not cancelled yet."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""
