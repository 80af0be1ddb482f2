"""A task, the intent to cancel it, and the events that its agent commits."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from evershell.workspace.v1 import field_limits

# The maximum length of a description, in characters.
MAX_DESCRIPTION_CHARACTERS = field_limits.SUBMIT_TASK_DESCRIPTION_MAX
DEFAULT_MAX_ITERATIONS = field_limits.SUBMIT_TASK_MAX_ITERATIONS_DEFAULT_VALUE
MAX_ITERATIONS = field_limits.SUBMIT_TASK_MAX_ITERATIONS_MAX
# The maximum number of tokens of each kind in one model call.
MAX_CALL_TOKENS = 1_000_000_000
# Token counts that are parts of other counts and may have their own prices. Maps each part to the
# counts that include it. A part stands before the counts that include it.
TOKEN_PARTS: Mapping[str, tuple[str, ...]] = {
    "cache_write_1h_tokens": ("cache_write_tokens", "input_tokens"),
    "cache_write_tokens": ("input_tokens",),
    "cached_input_tokens": ("input_tokens",),
    "input_audio_tokens": ("input_tokens",),
    "reasoning_tokens": ("output_tokens",),
    "output_audio_tokens": ("output_tokens",),
}
# The fields of a model call that count tokens.
TOKENS = ("input_tokens", "output_tokens", *TOKEN_PARTS)
# The maximum number of tool calls in one iteration.
MAX_TOOL_CALLS = 128
# The longest name of a model for which a price is looked up.
MAX_MODEL_CHARACTERS = 200


class TaskStatus(StrEnum):
    """The values of Task.Status in the protos."""

    SUBMITTED = "submitted"
    DELIVERED = "delivered"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELIVERY_FAILED = "delivery_failed"

    @property
    def is_terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL = frozenset(
    {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.DELIVERY_FAILED}
)


class Phase(StrEnum):
    """The part of the iteration that the agent is in."""

    NONE = ""
    MODEL_CALL = "model_call"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The resources that a task has used."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    # In nano-dollars; None if it is unknown.
    cost_nanos: int | None = 0

    def __add__(self, other: "Usage") -> "Usage":
        return self._with(other, operator.add)

    def at_least(self, other: "Usage") -> "Usage":
        """The larger value of each field. Ignores the cost of `other` if it is unknown."""
        if other.cost_nanos is None:
            other = replace(other, cost_nanos=self.cost_nanos)
        return self._with(other, max)

    def _with(self, other: "Usage", of: Callable[[int, int], int]) -> "Usage":
        own, others = self.cost_nanos, other.cost_nanos
        return Usage(
            input_tokens=of(self.input_tokens, other.input_tokens),
            output_tokens=of(self.output_tokens, other.output_tokens),
            model_calls=of(self.model_calls, other.model_calls),
            tool_calls=of(self.tool_calls, other.tool_calls),
            cost_nanos=None if own is None or others is None else of(own, others),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIteration:
    """What the agent reports about the current iteration before its tool calls begin."""

    # One more than the number of committed iterations.
    number: int
    usage: Usage
    # For each tool call, the fields of the message StartedCall.
    started_calls: Sequence[Mapping[str, Any]] = ()

    def with_report(self, report: "OpenIteration") -> "OpenIteration":
        """Merges another report of this iteration. The report with fewer tool calls is older."""
        is_older = len(report.started_calls) < len(self.started_calls)
        older, newer = (report, self) if is_older else (self, report)
        return replace(newer, usage=newer.usage.at_least(older.usage))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """The limits at which the service itself cancels a task; None for no limit."""

    # Counted from the start of the task.
    max_duration_seconds: float | None = None
    # The input and output tokens of all model calls.
    max_total_tokens: int | None = None
    # The cost of all model calls, in nano-dollars.
    max_cost_nanos: int | None = None
    # How long the iteration may continue after a limit is reached, before the agent interrupts it.
    force_after_seconds: float | None = None
    # Whether the limits apply to the task and its descendants together. Only a root may set this.
    include_descendants: bool = False

    @property
    def are_set(self) -> bool:
        """Whether there is a limit that the task can reach."""
        limits = (self.max_duration_seconds, self.max_total_tokens, self.max_cost_nanos)
        return limits != (None, None, None)


class Limit(StrEnum):
    """The limits that cancel a task: fields of TaskLimits."""

    MAX_DURATION = "max_duration"
    MAX_TOTAL_TOKENS = "max_total_tokens"
    MAX_COST = "max_cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelIntent:
    """A recorded cancellation. It belongs to the task, never to the workspace."""

    # Caller.actor_id, or task_limits.REQUESTER.
    requested_by: str
    credential_kind: str
    requested_at: datetime
    reason: str
    request_id: str
    # When the agent interrupts the iteration; None if it does not. A later call than the one that
    # recorded the intent may have set this time.
    force_at: datetime | None = None
    # Who set `force_at`; None if it is not set.
    force_requested_by: str | None = None

    def is_forced_earlier(self, force_at: datetime | None) -> bool:
        """Whether `force_at` replaces the recorded deadline, because it is earlier.

        store/functions/is_forced_earlier.sql has the same rule in SQL.
        """
        return force_at is not None and (self.force_at is None or force_at < self.force_at)

    @property
    def force_begins_at(self) -> datetime | None:
        """When the agent must begin to interrupt the iteration; None for never.

        When the intent of a limit is recorded, its `force_at` may be long past, but the agent
        cannot know of the intent before it is recorded.
        """
        return None if self.force_at is None else max(self.force_at, self.requested_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as the database stores it."""

    id: str
    workspace_id: str
    description: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Caller.actor_id of the caller who submitted the task.
    submitted_by: str = ""
    max_iterations: int = DEFAULT_MAX_ITERATIONS
    status: TaskStatus = TaskStatus.SUBMITTED
    phase: Phase = Phase.NONE
    iterations: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel: CancelIntent | None = None
    reason: str = ""
    result: str = ""
    forced: bool = False
    # Whether the task ended during an iteration that was not committed.
    iteration_lost: bool = False
    # The usage of the committed iterations. After the end of the task, it includes the reported
    # usage of a lost iteration.
    usage: Usage = Usage()
    open_iteration: OpenIteration | None = None
    # The total size of the committed iterations in bytes, as received from the agent.
    committed_bytes: int = 0
    limits: TaskLimits = TaskLimits()
    # The ancestors, from the root of the tree to the parent; empty for a root.
    ancestor_ids: tuple[str, ...] = ()
    # Whether the root of the task's tree has limits that include its descendants.
    in_limited_tree: bool = False

    @property
    def parent_id(self) -> str:
        """The id of the parent; empty for a root."""
        return self.ancestor_ids[-1] if self.ancestor_ids else ""

    @property
    def root_id(self) -> str:
        return self.ancestor_ids[0] if self.ancestor_ids else self.id

    @property
    def used(self) -> Usage:
        """The usage of the task, including the reported usage of the current iteration."""
        return self.usage + self.open_iteration.usage if self.open_iteration else self.usage

    @property
    def listed_status(self) -> TaskStatus:
        """The status of the task in lists: a task that is being cancelled counts as running."""
        is_being_cancelled = self.cancel is not None and not self.status.is_terminal
        return TaskStatus.RUNNING if is_being_cancelled else self.status

    @property
    def changed_at(self) -> datetime:
        """When the task ended; before that, the latest of its creation, start and cancellation."""
        if self.completed_at is not None:
            return self.completed_at
        changed_at = self.started_at or self.created_at
        return changed_at if self.cancel is None else max(changed_at, self.cancel.requested_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCall:
    """A running model call or tool call."""

    phase: Phase
    # The name of the model or the tool; empty if it is not known.
    name: str
    # The arguments of a tool call.
    arguments: str = ""
    duration_ms: int
    # The last part of the output so far.
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentIteration:
    """The current iteration of a task, with its running calls."""

    # The first iteration has number 1. 0 if the agent does not work on the task.
    number: int = 0
    # The running calls, in the order in which they began.
    calls: Sequence[RunningCall] = ()


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

    @property
    def tool_calls(self) -> Sequence[Mapping[str, Any]]:
        """All tool calls. If there is only one, the payload may have it only in `tool_call`."""
        first = self.payload.get("tool_call")
        return self.payload.get("tool_calls") or ([] if first is None else [first])


@dataclass(frozen=True, slots=True)
class IterationReported:
    """The agent reports the current iteration. This is not an event.

    `payload` has the fields of the message OpenIteration, and `size_bytes` is the size of that
    message.
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
    # Whether an iteration was running that will not be committed.
    iteration_lost: bool = False


AgentEvent = TaskStarted | IterationCompleted | IterationReported | TaskEnded
