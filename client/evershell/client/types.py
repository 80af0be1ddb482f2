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
    """What `cancel` found."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """An earlier call recorded the cancellation; its requester, time and reason stay."""
    ALREADY_FINISHED = "already_finished"
    """The task that `task_id` names had already ended; `task.status` says how."""
    NO_ACTIVE_TASK = "no_active_task"
    """The workspace is idle or suspended: no task runs."""


class TaskStatus(TaskStatusProperties, StrEnum):
    """The state of a task."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    SUBMITTED = "submitted"
    """The task is recorded; the agent has not received it yet."""
    DELIVERED = "delivered"
    """The agent has received the task and has not begun it."""
    RUNNING = "running"
    """The agent is working on the task."""
    COMPLETED = "completed"
    """Ended: the agent finished the task."""
    FAILED = "failed"
    """Ended: the task could not be finished; `end_reason` says why."""
    CANCELLED = "cancelled"
    """Ended: a cancellation was recorded before the task ended."""
    DELIVERY_FAILED = "delivery_failed"
    """Ended: the agent could not be reached, so the task never began."""


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
    """The workspace's agent is being started and has not registered yet."""
    IDLE = "idle"
    """The workspace's agent is waiting for a task."""
    BUSY = "busy"
    """The workspace's agent is working on `current_task_id`."""
    STOPPING = "stopping"
    """The workspace's agent is being ended."""
    STOPPED = "stopped"
    """`stop_workspace` has stopped the workspace, which has no agent."""
    FAILED = "failed"
    """The workspace's agent died or could not start; `status_reason` says why. `resume_workspace`
    starts a new agent."""
    SUSPENDED = "suspended"
    """The workspace has no agent: it was idle for a long time, or its agent did not interrupt a
    task in time and was ended. The files stay. The next task starts a new agent."""
    DELETING = "deleting"
    """`delete_workspace` is removing the workspace with its tasks, events and files."""


class TaskOutcome(StrEnum):
    """What `cancel_tasks` found for a task."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call recorded the cancellation."""
    ALREADY_REQUESTED = "already_requested"
    """An earlier call recorded the cancellation; its requester, time and reason stay."""
    MATCHED = "matched"
    """In a dry run: without `dry_run`, the call would have recorded the cancellation."""


class ResumeOutcome(StrEnum):
    """What `resume_workspaces` found for a workspace."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    ACCEPTED = "accepted"
    """This call has resumed the workspace, which is `provisioning`."""
    MATCHED = "matched"
    """In a dry run: without `dry_run`, the call would have resumed the workspace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits(Result):
    """The limits at which the service itself cancels a task, as `cancel` does.

    `requested_by` of such a cancellation is `system:limit`, `credential_kind` is `system`, and the
    reason names the limit and its value.
    """

    _message_type: ClassVar[type[Message]] = task_pb2.TaskLimits

    max_duration: timedelta | None = None
    """The maximum time since the start of the task. More than 0 s. At most 2,592,000 seconds."""
    max_total_tokens: int | None = None
    """The maximum number of input and output tokens of all model calls together, checked after each
    iteration. 1 to 1,000,000,000,000."""
    force_after: timedelta | None = None
    """Interrupts an iteration that still runs this long after a limit was reached. If None, the
    iteration ends normally. At most 86,400 seconds."""
    max_cost: Decimal | None = None
    """The maximum cost of all model calls together, in USD, checked after each iteration. More than
    0. If an agent uses a model without a price, its task is cancelled when the first call of that
    model is committed. At most 1,000,000 USD."""
    include_descendants: bool = False
    """Only for a task without a parent: the other limits then apply to the task and all its
    descendants together, and at a limit the service cancels them all. The limits are checked every
    second, even after the task itself has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter(Result):
    """Which tasks a call applies to.

    A task matches if it matches every field that is set. At least one field must be set, and no
    field may be empty.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceFilter(Result):
    """Which workspaces a call applies to.

    A workspace matches if it matches every field that is set. At least one field must be set, and
    no field may be empty.
    """

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.WorkspaceFilter

    workspace_ids: tuple[str, ...] | None = None
    """Only these workspaces. Ids of workspaces that do not exist match nothing. At most 1,000."""
    created_by_user_id: str | None = None
    """Only workspaces that this user has created. 1 to 255 characters."""


@dataclass(frozen=True, slots=True)
class Usage(Result):
    """What a task has used so far."""

    _message_type: ClassVar[type[Message]] = task_pb2.Usage

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    cost: Decimal | None = None
    """The cost of the model calls in USD, computed from the tokens that the agent has reported and
    the prices that the service knows. None if the cost is unknown because a model had no price. If
    `forced` is true, this is a lower bound: a model call that was interrupted counts only with the
    tokens that its endpoint had reported before."""


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
    """The maximum number of iterations. A task that has not finished by then ends `failed`."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When the agent began the task; None until then."""
    completed_at: datetime | None = None
    """When the task ended; None until then."""
    cancel_requested_at: datetime | None = None
    """When the cancellation of the task was recorded; None if no cancellation is recorded."""
    cancel_requested_by: str | None = None
    """Who first asked for the cancellation: a user id, an API key id, `agent:` and the id of an
    agent's workspace, or `system:limit`."""
    cancel_reason: str = ""
    """The reason that the first requester gave."""
    cancel_force_at: datetime | None = None
    """When the cancellation interrupts an iteration that is still running. If None, the
    cancellation does not interrupt the iteration."""
    forced: bool = False
    """True if the last iteration of the task was interrupted."""
    end_reason: str = field(default="", metadata=named("reason"))
    """Why the task ended with this status; human-readable, may be empty."""
    result: str = ""
    """The agent's final answer or, if the task ended early, the partial result."""
    usage: Usage = field(default_factory=Usage)
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The metadata given to `submit_task`."""
    submitted_by: str | None = None
    """Who submitted the task: a user id, an API key id, or `agent:` and the id of an agent's
    workspace."""
    limits: TaskLimits | None = None
    """The limits given to `submit_task`; None if none were given."""
    parent_task_id: str | None = None
    """The parent of the task; None if it has no parent."""
    root_task_id: str | None = None
    """The task at the root of the tree; the task's own id if it has no parent."""
    iteration_lost: bool = False
    """True if an iteration was reported or in progress when the agent was lost. That iteration is
    not in the log. `usage` includes what the agent had reported about it."""


@dataclass(frozen=True, slots=True)
class CancelResult(CancelResultProperties, Result):
    """The answer to a cancellation."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.CancelTaskResponse

    workspace_id: str
    outcome: CancelOutcome
    task_id: str | None = None
    """The task that the call is about; None if there is no active task."""
    requested_at: datetime | None = None
    """When the cancellation was recorded; None if no cancellation is recorded."""
    requested_by: str | None = None
    """Who first asked for the cancellation: a user id, an API key id, `agent:` and the id of an
    agent's workspace, or `system:limit`."""
    reason: str = ""
    """The reason that the first requester gave."""
    task: Task | None = None
    """The current state of the task."""
    descendants_cancelled: int = 0
    """With `include_descendants`: the number of descendants whose cancellation this call
    recorded."""
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
    """A model call or a tool call that is running."""

    _message_type: ClassVar[type[Message]] = task_pb2.RunningCall

    phase: TaskPhase
    """`model_call` or `tool_call`."""
    name: str = ""
    """The name of the model or of the tool. Empty if the model is not known until it answers."""
    arguments: str = ""
    """The arguments of a tool call, as in ToolCall: the first 4 KiB."""
    duration_ms: int = 0
    """How long the call has run."""
    output: str = ""
    """The last 8 KiB of what a command has printed, or of what a model has written so far. Empty
    for a tool that is not a command, and for a model that does not stream."""


@dataclass(frozen=True, slots=True)
class CurrentIteration(Result):
    """What a task is doing now.

    The texts come from the agent, which removes its own keys from them.
    """

    _message_type: ClassVar[type[Message]] = task_pb2.CurrentIteration

    workspace_id: str
    task_id: str
    number: int = 0
    """The number of the iteration, from 1, as in IterationCompleted. 0 if the task has not begun or
    has ended."""
    phase: TaskPhase | None = None
    """The phase of the call that began last."""
    calls: tuple[RunningCall, ...] = ()
    """The running calls in the order in which they began, at most 16. Empty if no call is running,
    or if the agent cannot report its calls."""


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
    """Why the workspace has this status; human-readable, may be empty."""
    created_by_user_id: str | None = None
    """The user who created the workspace; None if it was created with an API key."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    current_task_id: str | None = None
    """The task that the agent is working on, or is being started for; None if there is none."""
    epoch: int = 0
    """Counts the agents that were started for the workspace, from 1. Calls of agents of earlier
    epochs have no effect."""


@dataclass(frozen=True, slots=True)
class AuditEntry(Result):
    """One authenticated call, allowed or refused, of a method that changes something.

    An entry never changes.
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
    """The API key id, or the `jti` of the session token; None if there is none."""
    rpc: str = ""
    """For example `CancelTask`."""
    workspace_id: str | None = None
    """The workspace that the caller named, which may not exist. For `create_workspace`, the new
    workspace."""
    task_id: str | None = None
    """The task that the call named or changed; may be None."""
    outcome: str = ""
    """How the call ended. Success: the outcome of `cancel`, `dry_run` for a dry run, otherwise
    `ok`. Failure: the slug of the error, or `caller_gone` if the caller went away before the
    answer. If the agent could not be reached, the entry has the outcome that was committed."""
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
    """The number of tasks that match and have not ended: the sum of `accepted`, `already_requested`
    and `remaining`."""
    accepted: int = 0
    """The number of tasks whose cancellation this call recorded."""
    already_requested: int = 0
    """The number of tasks whose cancellation an earlier call recorded."""
    remaining: int = 0
    """The number of tasks that a further call must cancel."""
    results: tuple[CancelledTask, ...] = ()
    """One result for each task, at most 1,000: first the tasks that this call was to cancel, then
    the tasks that earlier calls have cancelled; within each group, the oldest first."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class ResumedWorkspace(Result):
    """What `resume_workspaces` found for one workspace."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.ResumeWorkspacesResult

    workspace_id: str
    outcome: ResumeOutcome = ResumeOutcome.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class ResumeWorkspacesResult(Result):
    """The answer to `resume_workspaces`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.ResumeWorkspacesResponse

    matched: int = 0
    """The number of failed workspaces that match: the sum of `accepted` and `remaining`."""
    accepted: int = 0
    """The number of workspaces that this call has resumed."""
    remaining: int = 0
    """The number of workspaces that a further call must resume."""
    results: tuple[ResumedWorkspace, ...] = ()
    """One result for each workspace that this call has resumed, or would resume without `dry_run`,
    at most 250: the oldest first."""
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
    """The user id or API key id of the caller who put the organization on hold; None if it is not
    on hold."""
    held_since: datetime | None = None
    """When the organization was put on hold; None if it is not on hold."""
    reason: str = ""
    """The reason that the caller in `held_by` gave."""


@dataclass(frozen=True, slots=True)
class HoldResult(Result):
    """The answer to `hold`."""

    _message_type: ClassVar[type[Message]] = workspace_service_pb2.HoldOrgResponse

    hold: Hold
    """The hold in force."""
    accepted: int = 0
    """With `cancel_running`: the number of tasks whose cancellation this call recorded."""
    already_requested: int = 0
    """With `cancel_running`: the number of tasks that an earlier call has cancelled and that have
    not ended."""
    remaining: int = 0
    """With `cancel_running`: the number of tasks that a further call must cancel."""
    request_id: str = field(default="", compare=False)
    """Identifies the call in the log of the service and in the audit log."""


@dataclass(frozen=True, slots=True)
class CallerInfo(Result):
    """The caller, as its credential describes it."""

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
