"""The results of the client, and their enums. Absent values are None."""

# Written by `make gen` from protos/. Do not edit.

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
from evershell.client._properties import (
    CancelResultProperties,
    TaskProperties,
    TaskStatusProperties,
)


class CancelOutcome(StrEnum):
    """What a cancellation found."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """It was recorded before; the requester, time and reason of the first call stay."""
    ALREADY_FINISHED = "already_finished"
    """`task_id` names a task that had ended; `task.status` says how."""
    NO_ACTIVE_TASK = "no_active_task"
    """The workspace is idle or suspended: no task runs."""


class TaskStatus(TaskStatusProperties, StrEnum):
    """The state of a task."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
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


class TaskPhase(StrEnum):
    """What the current iteration is doing."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    MODEL_CALL = "model_call"
    TOOL_CALL = "tool_call"


class WorkspaceStatus(StrEnum):
    """The state of a workspace."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    PROVISIONING = "provisioning"
    """Its agent is being started and has not registered yet."""
    IDLE = "idle"
    """Its agent is waiting for a task."""
    BUSY = "busy"
    """Its agent is working on `current_task_id`."""
    STOPPING = "stopping"
    """Its agent is being ended."""
    STOPPED = "stopped"
    """`stop_workspace` has stopped it; it has no agent."""
    FAILED = "failed"
    """Its agent died or could not start; `status_reason` says why. `resume_workspace` starts a new
    one."""
    SUSPENDED = "suspended"
    """It has no agent: it was idle for a long time, or its agent was ended because it did not
    interrupt a task in time. Its files stay. The next task wakes it."""
    DELETING = "deleting"
    """`delete_workspace` is removing it, with its tasks, events and files."""


class TaskOutcome(StrEnum):
    """What `cancel_tasks` found for a task."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """It was recorded before; the requester, time and reason of the first call stay."""
    MATCHED = "matched"
    """A dry run: without it, the call would have recorded the cancellation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits(Result):
    """When the service itself cancels a task, as `cancel` does: `requested_by` is `system:limit`,
    `credential_kind` is `system`, and the reason names the limit and its value."""

    _message_type: ClassVar[type[Message]] = task_pb2.TaskLimits

    max_duration: timedelta | None = None
    """Since the task was started. More than 0 s. At most 2,592,000 seconds."""
    max_total_tokens: int | None = None
    """Input and output tokens of all model calls, checked after each iteration. 1 to
    1,000,000,000,000."""
    force_after: timedelta | None = None
    """Interrupts an iteration that still runs this long after a limit was reached. If None, the
    iteration ends normally. At most 86,400 seconds."""
    max_cost: Decimal | None = None
    """What all model calls have cost, in USD, checked after each iteration. More than 0. If an
    agent uses a model without a price, its task is cancelled when the first call of that model is
    committed. At most 1,000,000 USD."""
    include_descendants: bool = False
    """Only for a task without a parent: the other limits count for the task and all its descendants
    together, and the service cancels all of them. Checked every second, even after the end of the
    task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter(Result):
    """Which tasks a call is about.

    A task matches if it matches every field that is set. At least one has to be set, and none may
    be empty: a filter without fields is refused.
    """

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.TaskFilter

    task_ids: tuple[str, ...] | None = None
    """Only these tasks. Ids of tasks that do not exist or have ended match nothing. At most
    1,000."""
    workspace_ids: tuple[str, ...] | None = None
    """Only tasks of these workspaces. Ids that do not exist match nothing. At most 1,000."""
    created_by_user_id: str | None = None
    """Only tasks in workspaces that this user has created. 1 to 255 characters."""
    submitted_by: str | None = None
    """Only tasks with this `submitted_by`. 1 to 255 characters."""
    submitted_before: datetime | None = None
    """Only tasks that were submitted before this time. A time without a zone is local time."""
    metadata: Mapping[str, str] | None = field(default=None, hash=False)
    """Only tasks whose metadata has all of these entries. No value may be empty. At most 32
    entries, keys of 1 to 64 characters, values of at most 512."""


@dataclass(frozen=True, slots=True)
class Usage(Result):
    """What a task has used so far."""

    _message_type: ClassVar[type[Message]] = task_pb2.Usage

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    cost: Decimal | None = None
    """What the model calls have cost, in USD: the tokens that the agent has reported, at the prices
    that the service has. None if it is unknown, because a model had no price."""


@dataclass(frozen=True, slots=True)
class Task(TaskProperties, Result):
    """A piece of work for the agent of a workspace."""

    _message_type: ClassVar[type[Message]] = task_pb2.Task

    id: str
    """`task_` and a ULID."""
    workspace_id: str
    description: str = ""
    status: TaskStatus = TaskStatus.UNSPECIFIED
    phase: TaskPhase | None = None
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
    """The user id or API key id of the first requester; `system:limit` for a limit of the task."""
    cancel_reason: str = ""
    """The reason that the first requester gave."""
    cancel_force_at: datetime | None = None
    """When its iteration is interrupted if it still runs. If None, it is not interrupted."""
    forced: bool = False
    """True if its last iteration was interrupted."""
    end_reason: str = field(default="", metadata=named("reason"))
    """Why it ended with this status; human-readable, may be empty."""
    result: str = ""
    """The agent's final answer or, if the task ended early, the partial result."""
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The metadata given to `submit_task`."""
    submitted_by: str | None = None
    """The user id or API key id of the caller who submitted it, or `agent:` and the id of the
    workspace of the agent that did."""
    limits: TaskLimits | None = None
    """The limits given to `submit_task`; None without any."""
    parent_task_id: str | None = None
    """The task whose child it is; None for none."""
    root_task_id: str | None = None
    """The task at the root of its tree: its own id if it has no parent."""
    iteration_lost: bool = False
    """True if an iteration was reported or in progress when the agent was lost. The iteration is
    not on record. `usage` includes what the agent had reported of it."""


@dataclass(frozen=True, slots=True)
class CancelResult(CancelResultProperties, Result):
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
    """The current state of the task."""
    descendants_cancelled: int = 0
    """With `include_descendants`: the descendants whose cancellation this call recorded."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class SubmittedTask(Result):
    """The answer to `submit_task`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.SubmitTaskResponse

    task_id: str
    workspace_id: str
    status: TaskStatus = TaskStatus.UNSPECIFIED
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class RunningCall(Result):
    """A model call or a tool call that runs."""

    _message_type: ClassVar[type[Message]] = task_pb2.RunningCall

    phase: TaskPhase
    """`model_call` or `tool_call`."""
    name: str = ""
    """The name of the model or of the tool. Empty for a model that is not known before it
    answers."""
    arguments: str = ""
    """The arguments of a tool call, as in ToolCall: the first 4 KiB."""
    duration_ms: int = 0
    """How long it has run."""
    output: str = ""
    """The last 8 KiB of what a command has printed, or of what a model has written so far. Empty
    for a tool that is not a command, and for a model that does not stream."""


@dataclass(frozen=True, slots=True)
class CurrentIteration(Result):
    """What a task does now.

    Its texts are what the agent reports, without the keys of the agent.
    """

    _message_type: ClassVar[type[Message]] = task_pb2.CurrentIteration

    workspace_id: str
    task_id: str
    number: int = 0
    """Counts from 1, as in IterationCompleted. 0 if the task has not begun or has ended."""
    phase: TaskPhase | None = None
    """The phase of the call that has begun last."""
    calls: tuple[RunningCall, ...] = ()
    """The calls that run, in the order in which they began, at most 16. Empty while none runs, and
    if the agent cannot report its calls."""


@dataclass(frozen=True, slots=True)
class Workspace(Result):
    """A place where an agent works, on one task at a time."""

    _message_type: ClassVar[type[Message]] = workspace_pb2.Workspace

    id: str
    """`ws_` and a ULID."""
    org_id: str = ""
    name: str = ""
    """The name given to `create_workspace`, human-readable."""
    status: WorkspaceStatus = WorkspaceStatus.UNSPECIFIED
    status_reason: str = ""
    """Why it has this status; human-readable, may be empty."""
    created_by_user_id: str | None = None
    """The user who created it; None if it was created with an API key."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    current_task_id: str | None = None
    """The task that its agent is working on, or is started for; None if there is none."""
    epoch: int = 0
    """Counts the starts of its agent, from 1. Calls of agents of older epochs have no effect."""


@dataclass(frozen=True, slots=True)
class AuditEntry(Result):
    """One authenticated call of a method that changes something, allowed or refused.

    It never changes.
    """

    _message_type: ClassVar[type[Message]] = audit_pb2.AuditEntry

    id: str
    """`aud_` and a ULID."""
    time: datetime | None = None
    """When the call arrived."""
    org_id: str = ""
    actor_id: str = ""
    """The user id or API key id of the caller, or `agent:` and the id of an agent's workspace."""
    credential_kind: str = ""
    """`session`, `api_key` or `agent`."""
    credential_id: str | None = None
    """The API key id, or the `jti` of the session token; None if it has none."""
    rpc: str = ""
    """For example `CancelTask`."""
    workspace_id: str | None = None
    """The workspace that the caller named, which may not exist. For `create_workspace`, the new
    workspace."""
    task_id: str | None = None
    """The task that the call named or changed; may be None."""
    outcome: str = ""
    """The outcome of `cancel`, `dry_run` of `cancel_tasks`, `ok`, or the slug of the error.
    `caller_gone` if the caller went away before the answer. An allowed call whose agent could not
    be reached has the outcome that was committed."""
    reason: str = ""
    """The reason that the caller gave."""
    request_id: str = ""
    trace_id: str | None = None
    """None if the call belongs to no trace."""
    client_address: str = ""
    """The IP address of the client, as the edge saw it."""


@dataclass(frozen=True, slots=True)
class CancelledTask(Result):
    """What `cancel_tasks` found for one task."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CancelTasksResult

    workspace_id: str
    task_id: str
    outcome: TaskOutcome = TaskOutcome.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class CancelTasksResult(Result):
    """The answer to `cancel_tasks`."""

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
    """One for each task: first those that this call was to cancel, then those that were cancelled
    before, each from the oldest on. At most 1,000."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class Hold(Result):
    """Whether an organization is on hold.

    While it is, `submit_task`, `create_workspace` and `resume_workspace` answer org_on_hold.
    """

    _message_type: ClassVar[type[Message]] = hold_pb2.Hold

    org_id: str
    on_hold: bool = False
    held_by: str | None = None
    """The user id or API key id of the caller who put it on hold first; None without a hold."""
    held_since: datetime | None = None
    """When it was put on hold; None without a hold."""
    reason: str = ""
    """The reason that this caller gave."""


@dataclass(frozen=True, slots=True)
class HoldResult(Result):
    """The answer to `hold`."""

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


@dataclass(frozen=True, slots=True)
class CallerInfo(Result):
    """Who calls, as the credential of the call says."""

    _message_type: ClassVar[type[Message]] = caller_pb2.Caller

    org_id: str
    actor_id: str
    """The user's id, or the id of the API key."""
    credential_kind: str = ""
    """`api_key` or `session`."""
    scopes: tuple[str, ...] = ()
    """What the caller may do: `<resource>:<verb>`, or `<resource>:<verb>:own` for the workspaces
    that the caller has created."""
    expires_at: datetime | None = None
    """When the credential expires; None if it does not."""
