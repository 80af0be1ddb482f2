"""The events of a workspace's log, and the entries of the audit log.

An event's payload is plain data with the fields of the message in event.proto that is named after
the event's type.

Every authenticated call of a method that changes something leaves one entry in the audit log.
Entries never change. The entry of an allowed call is committed together with the call's change. The
entry of CancelTask is committed in the transaction that decides the call, even if the call is
refused. The entries of all other refused calls are collected, and stored within a second.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from evershell.workspace.v1 import field_limits
from evershell.workspace.v1.event_types import EventType as EventType

from evershell.core import money
from evershell.core.task import CancelIntent, Task, Usage
from evershell.core.task_limits import Budget
from evershell.core.validation import Fields

Encoded = TypeVar("Encoded")

# The outcome of an allowed call. CancelTask has its own outcomes.
AUDIT_OK = "ok"
# The maximum length of `actor_id`, `rpc` and `outcome` in AuditFilter.
MAX_FILTER_CHARACTERS = field_limits.LIST_AUDIT_ENTRIES_ACTOR_ID_MAX
# The types of the events of tasks. The types of a workspace's own events begin with `workspace_`.
TASK_EVENT_TYPES = tuple(
    each
    for each in EventType
    if each is not EventType.UNSPECIFIED and not each.startswith("workspace_")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """The record of one call. A text that is not known is empty."""

    # `aud_` and a ULID. Sorts by time.
    id: str
    time: datetime
    # Empty if the call was not authenticated.
    org_id: str
    # Caller.actor_id.
    actor_id: str
    # `session`, `api_key` or `agent`.
    credential_kind: str
    # The API key's id, or the session token's `jti`.
    credential_id: str
    # The name of the method, for example `CancelTask`.
    rpc: str
    # The workspace and the task of the call. An id that the caller named need not exist.
    workspace_id: str
    task_id: str
    # An outcome of CancelTask, `dry_run` for a dry run, `ok`, the slug of an error,
    # or `caller_gone`.
    outcome: str
    reason: str
    request_id: str
    trace_id: str
    # The address of the client, without a port.
    client_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries to list. A field that is empty or None matches every entry.

    Raises Failure validation_error.
    """

    workspace_id: str = ""
    task_id: str = ""
    actor_id: str = ""
    rpc: str = ""
    outcome: str = ""
    # Inclusive.
    start_time: datetime | None = None
    # Exclusive.
    end_time: datetime | None = None

    def __post_init__(self) -> None:
        fields = Fields()
        for name in ("workspace_id", "task_id"):
            if value := getattr(self, name):
                fields.identifier(name, value)
        for name in ("actor_id", "rpc", "outcome"):
            fields.text(name, getattr(self, name), max_characters=MAX_FILTER_CHARACTERS)
        if self.start_time and self.end_time and self.start_time >= self.end_time:
            fields.reject("end_time", "must be after start_time")
        fields.check()


@dataclass(frozen=True, slots=True)
class Origin:
    """The call that caused an event. All fields are empty if no call caused it."""

    # Empty if the call is an agent's CommitEvents.
    request_id: str = ""
    # The trace that the call belongs to, if any.
    trace_id: str = ""
    # The call's entry in the audit log, if it gets one. The entry is not a part of the event.
    audit: AuditEntry | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to commit. The store assigns its `seq`."""

    type: EventType
    time: datetime
    payload: Mapping[str, Any]
    task_id: str | None = None
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(NewEvent):
    """A committed event."""

    workspace_id: str
    seq: int
    # The position in the log of all workspaces; 0 if the event was read from the log of its
    # workspace.
    position: int = field(default=0, compare=False)


class LogScope(NamedTuple):
    """A part of the log of all workspaces: what a caller may see of it."""

    org_id: str
    # Only the events of workspaces that this user created; None for all of the organization.
    creator_id: str | None = None


class LogEntry(NamedTuple):
    """An event in the log of all workspaces, and the scopes to which it belongs."""

    event: Event
    org_id: str
    # The user who created the workspace, if a user did.
    creator_id: str | None


class EventBatch(list[Event]):
    """The events of one read: a part of a log, without gaps.

    Watchers that share the read also share the encoded result.
    """

    __slots__ = ("_encoded",)

    def __init__(self, events: Iterable[Event] = ()) -> None:
        super().__init__(events)
        self._encoded: dict[Callable[[Sequence[Event]], Any], Any] = {}

    def encoded(self, encode: Callable[[Sequence[Event]], Sequence[Encoded]]) -> Sequence[Encoded]:
        """The result of `encode` for the batch, computed only once. Callers must not change it."""
        found: Sequence[Encoded] | None = self._encoded.get(encode)
        if found is None:
            found = self._encoded[encode] = encode(self)
        return found


def cancel_requested_payload(intent: CancelIntent) -> dict[str, Any]:
    """The payload of `task_cancel_requested`."""
    return {"cancel": _intent_payload(intent)}


def _intent_payload(intent: CancelIntent) -> dict[str, Any]:
    payload = {
        "requested_by": intent.requested_by,
        "credential_kind": intent.credential_kind,
        "requested_at": intent.requested_at.isoformat(),
        "reason": intent.reason,
    }
    if intent.force_at is not None:
        payload["force_at"] = intent.force_at.isoformat()
        payload["force_requested_by"] = intent.force_requested_by or ""
    return payload


def task_submitted(task: Task, submitted_by: str) -> NewEvent:
    """The event task_submitted: the task was recorded."""
    payload: dict[str, Any] = {
        "description": task.description,
        "max_iterations": task.max_iterations,
        "submitted_by": submitted_by,
    }
    if task.ancestor_ids:
        payload |= {"parent_task_id": task.parent_id, "root_task_id": task.root_id}
    return NewEvent(
        type=EventType.TASK_SUBMITTED,
        time=task.created_at,
        payload=payload,
        task_id=task.id,
    )


def task_started(task: Task, epoch: int, now: datetime) -> NewEvent:
    """The event task_started: the agent started the task."""
    return NewEvent(
        type=EventType.TASK_STARTED, time=now, payload={"epoch": epoch}, task_id=task.id
    )


def iteration_completed(task: Task, payload: Mapping[str, Any], now: datetime) -> NewEvent:
    """The event iteration_completed: an iteration (one model call and its tool calls) has ended."""
    return NewEvent(type=EventType.ITERATION_COMPLETED, time=now, payload=payload, task_id=task.id)


def task_limit_approached(task: Task, budget: Budget, now: datetime) -> NewEvent:
    """The event task_limit_approached: the task comes close to a limit on its usage."""
    used = budget.used or 0
    return NewEvent(
        type=EventType.TASK_LIMIT_APPROACHED,
        time=now,
        payload={
            "limit": str(budget.limit),
            "used": budget.text(used),
            "maximum": budget.text(budget.maximum),
        },
        task_id=task.id,
    )


def task_cancel_requested(task: Task, intent: CancelIntent) -> NewEvent:
    """The event task_cancel_requested: the intent to cancel the task was recorded."""
    return NewEvent(
        type=EventType.TASK_CANCEL_REQUESTED,
        time=intent.requested_at,
        payload=cancel_requested_payload(intent),
        task_id=task.id,
    )


def task_completed(task: Task, now: datetime, *, work_stopped: bool) -> NewEvent:
    """The event task_completed: the task has ended. `task` is the task after its end."""
    payload: dict[str, Any] = {
        "status": str(task.status),
        "forced": task.forced,
        "iterations": task.iterations,
        "usage": _usage_payload(task.usage),
        "result": task.result,
        "reason": task.reason,
        "work_stopped": "yes" if work_stopped else "unknown",
        "iteration_lost": task.iteration_lost,
    }
    if task.cancel is not None:
        payload["cancel"] = _intent_payload(task.cancel)
    return NewEvent(type=EventType.TASK_COMPLETED, time=now, payload=payload, task_id=task.id)


def _usage_payload(usage: Usage) -> dict[str, Any]:
    payload = asdict(usage)
    nanos = payload.pop("cost_nanos")
    return payload if nanos is None else payload | {"cost": money.fields(nanos)}


def workspace_event(type_: EventType, now: datetime, **payload: Any) -> NewEvent:
    """An event of the workspace itself."""
    return NewEvent(type=type_, time=now, payload=payload)
