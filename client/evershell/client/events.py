"""The events in the log of a workspace. The payload of an Event has the class of its type."""

# Written by `make gen` from protos/. Do not edit.

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Generic, Literal, TypeVar

from evershell.workspace.v1 import event_pb2
from google.protobuf.message import Message

from evershell.client._messages import Result, named
from evershell.client._properties import IterationCompletedProperties
from evershell.client.types import TaskStatus, Usage


class EventType(StrEnum):
    """The type of an event: the name of its payload."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
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


class ModelCallStatus(StrEnum):
    """How a model call ended."""

    UNSPECIFIED = "unspecified"
    """Recorded by an earlier release, which did not have this field; the model replied."""
    COMPLETED = "completed"
    """The model replied."""
    INTERRUPTED = "interrupted"
    """A forced cancellation aborted the call. The other fields hold what was received before
    that."""


class ToolStatus(StrEnum):
    """How a tool call ended."""

    UNSPECIFIED = "unspecified"
    """A value that this version of the client does not know."""
    EXITED = "exited"
    """The tool ran until it exited; `exit_code` has its exit code."""
    TIMED_OUT = "timed_out"
    """The call reached its time limit and was ended."""
    INTERRUPTED = "interrupted"
    """A forced cancellation interrupted the call."""
    NOT_RUN = "not_run"
    """The tool could not be run; `output` says why."""


class WorkStopped(StrEnum):
    """Whether every process that a task started is known to have ended."""

    UNSPECIFIED = "unspecified"
    """Recorded by an earlier release, which did not have this field."""
    YES = "yes"
    """All processes have ended."""
    UNKNOWN = "unknown"
    """Some processes may still run: their machine could not be asked."""


@dataclass(frozen=True, slots=True)
class WorkspaceProvisioned(Result):
    """The first agent of the workspace has registered."""

    _message_type: ClassVar[type[Message]] = event_pb2.WorkspaceProvisioned

    epoch: int


@dataclass(frozen=True, slots=True)
class WorkspaceStopped(Result):
    """The workspace was stopped or is being deleted, and its agent has ended."""

    _message_type: ClassVar[type[Message]] = event_pb2.WorkspaceStopped

    reason: str


@dataclass(frozen=True, slots=True)
class WorkspaceFailed(Result):
    """The workspace's agent died or could not start."""

    _message_type: ClassVar[type[Message]] = event_pb2.WorkspaceFailed

    reason: str


@dataclass(frozen=True, slots=True)
class WorkspaceResumed(Result):
    """A new agent has registered after a stop, a failure, a suspension or a restart of the host."""

    _message_type: ClassVar[type[Message]] = event_pb2.WorkspaceResumed

    epoch: int


@dataclass(frozen=True, slots=True)
class TaskSubmitted(Result):
    """The task was submitted and is recorded."""

    _message_type: ClassVar[type[Message]] = event_pb2.TaskSubmitted

    description: str
    max_iterations: int
    submitted_by: str
    parent_task_id: str | None = None
    """The parent of the task; None if it has no parent."""
    root_task_id: str | None = None
    """The task at the root of the tree; None if the task has no parent."""


@dataclass(frozen=True, slots=True)
class TaskStarted(Result):
    """The agent has begun the task."""

    _message_type: ClassVar[type[Message]] = event_pb2.TaskStarted

    epoch: int


@dataclass(frozen=True, slots=True)
class ModelCall(Result):
    """The model's reply."""

    _message_type: ClassVar[type[Message]] = event_pb2.ModelCall

    model: str
    content: str
    """The text that the model wrote. For an interrupted call: the text received so far, which is
    empty if the endpoint does not stream."""
    input_tokens: int
    """Input tokens as reported by the endpoint; 0 if it reported none. Most endpoints report tokens
    only at the end of an answer."""
    output_tokens: int
    duration_ms: int
    status: ModelCallStatus
    cached_input_tokens: int | None = None
    """The part of `input_tokens` that was read from a cache; None if it was not reported."""
    cache_write_tokens: int | None = None
    """The part of `input_tokens` that was written to a cache; None if it was not reported."""
    cache_write_1h_tokens: int | None = None
    """The part of `cache_write_tokens` that the cache keeps for an hour; None if not reported."""
    input_audio_tokens: int | None = None
    """The part of `input_tokens` that was audio; None if it was not reported."""
    reasoning_tokens: int | None = None
    """The part of `output_tokens` that was reasoning; None if it was not reported."""
    output_audio_tokens: int | None = None
    """The part of `output_tokens` that was audio; None if it was not reported."""


@dataclass(frozen=True, slots=True)
class ToolResult(Result):
    """The result of a tool call: how the call ended, and its output."""

    _message_type: ClassVar[type[Message]] = event_pb2.ToolResult

    status: ToolStatus
    exit_code: int
    """The exit code of the process. If a signal ended it: the negated number of the signal."""
    output: str
    """Standard output and standard error as one text, at most 64 KiB."""
    truncated_bytes: int
    """Bytes of output that exceeded the limit and were dropped."""


@dataclass(frozen=True, slots=True)
class ToolCall(Result):
    """A tool call that the model asked for, and its result."""

    _message_type: ClassVar[type[Message]] = event_pb2.ToolCall

    id: str
    name: str
    arguments: str
    """A JSON object."""
    result: ToolResult
    duration_ms: int


@dataclass(frozen=True, slots=True)
class IterationCompleted(IterationCompletedProperties, Result):
    """A model call and the tool calls that the model asked for have ended.

    A tool call is never recorded without its result. An iteration whose model call was interrupted
    has no tool calls and is the last iteration of its task.
    """

    _message_type: ClassVar[type[Message]] = event_pb2.IterationCompleted

    number: int
    """Counts the iterations of the task, from 1 and without gaps."""
    model_call: ModelCall
    tool_call: ToolCall | None = None
    """The first tool call. None if the model called no tool."""
    tool_calls: tuple[ToolCall, ...] = ()
    """If there are several tool calls: all of them, including the first, in the order in which they
    began. Otherwise empty. Tool calls may have run at the same time."""


@dataclass(frozen=True, slots=True)
class CancelIntent(Result):
    """Who asked for a cancellation, when, and why."""

    _message_type: ClassVar[type[Message]] = event_pb2.CancelIntent

    requested_by: str
    """A user id, an API key id, `agent:` and the id of an agent's workspace, or `system:limit`."""
    credential_kind: str
    """`session`, `api_key`, `agent` or `system`."""
    requested_at: datetime | None = None
    reason: str = ""
    force_at: datetime | None = None
    """The time at which the cancellation interrupts an iteration that is still running. If None,
    the cancellation does not interrupt the iteration."""
    force_requested_by: str | None = None
    """Who set `force_at`, possibly in a later call, in the form of `requested_by`."""


@dataclass(frozen=True, slots=True)
class TaskCancelRequested(Result):
    """A cancellation was recorded; the task will end `cancelled`."""

    _message_type: ClassVar[type[Message]] = event_pb2.TaskCancelRequested

    cancel: CancelIntent


@dataclass(frozen=True, slots=True)
class TaskCompleted(Result):
    """The task has ended. Each task has exactly one such event."""

    _message_type: ClassVar[type[Message]] = event_pb2.TaskCompleted

    status: TaskStatus
    forced: bool = False
    """True if the last iteration of the task was interrupted."""
    iterations: int = 0
    usage: Usage = field(default_factory=Usage)
    result: str = ""
    """The agent's final answer or, if the task ended early, the partial result."""
    end_reason: str = field(default="", metadata=named("reason"))
    """Why the task ended with this status, human-readable."""
    cancel: CancelIntent | None = None
    """Set if a cancellation of the task was recorded."""
    work_stopped: WorkStopped = WorkStopped.UNSPECIFIED
    """Whether every process that the task started is known to have ended."""
    iteration_lost: bool = False
    """True if the task ended during an iteration that is not in the log."""


@dataclass(frozen=True, slots=True)
class TaskLimitApproached(Result):
    """The task has used at least 80 % of a limit of tokens or cost, but has not reached the limit.

    There is at most one such event for each limit of a task.
    """

    _message_type: ClassVar[type[Message]] = event_pb2.TaskLimitApproached

    limit: str
    """The name of the field in TaskLimits: `max_total_tokens` or `max_cost`."""
    used: str
    """How much the task has used, as a decimal number of tokens or of USD. `maximum` has the limit,
    in the same unit."""
    maximum: str


Kind = TypeVar("Kind", bound=EventType)
Payload = TypeVar(
    "Payload",
    bound=WorkspaceProvisioned
    | WorkspaceStopped
    | WorkspaceFailed
    | WorkspaceResumed
    | TaskSubmitted
    | TaskStarted
    | IterationCompleted
    | TaskCancelRequested
    | TaskCompleted
    | TaskLimitApproached
    | None,
)


@dataclass(frozen=True, slots=True)
class EventOf(Result, Generic[Kind, Payload]):
    """One entry in the log of a workspace. Entries never change."""

    _message_type: ClassVar[type[Message]] = event_pb2.Event

    seq: int
    """The position in the log, from 1 and without gaps."""
    type: Kind
    workspace_id: str
    time: datetime | None
    task_id: str | None
    """None for events of the workspace itself."""
    request_id: str | None
    """The call that caused the event; None if the agent or the fleet controller caused it."""
    trace_id: str | None
    """The W3C trace id of the call, 32 hex digits."""
    payload: Payload
    """None only for a type that this version of the client does not know."""


# For type checkers, a comparison of the type narrows the payload.
Event = (
    EventOf[Literal[EventType.WORKSPACE_PROVISIONED], WorkspaceProvisioned]
    | EventOf[Literal[EventType.WORKSPACE_STOPPED], WorkspaceStopped]
    | EventOf[Literal[EventType.WORKSPACE_FAILED], WorkspaceFailed]
    | EventOf[Literal[EventType.WORKSPACE_RESUMED], WorkspaceResumed]
    | EventOf[Literal[EventType.TASK_SUBMITTED], TaskSubmitted]
    | EventOf[Literal[EventType.TASK_STARTED], TaskStarted]
    | EventOf[Literal[EventType.ITERATION_COMPLETED], IterationCompleted]
    | EventOf[Literal[EventType.TASK_CANCEL_REQUESTED], TaskCancelRequested]
    | EventOf[Literal[EventType.TASK_COMPLETED], TaskCompleted]
    | EventOf[Literal[EventType.TASK_LIMIT_APPROACHED], TaskLimitApproached]
    | EventOf[Literal[EventType.UNSPECIFIED], None]
)


def event_of(message: Message) -> Event:
    """The event in a message of a stream."""
    event: Event = EventOf._from_message(message)
    return event
