"""Converts between the messages of the protos and the objects of the core."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import (
    audit_pb2,
    caller_pb2,
    hold_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from evershell.api import payloads
from evershell.core import errors, money
from evershell.core.agent_rules import MAX_EVENTS, BreachError
from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelResult, CancelTask
from evershell.core.cancel_tasks import CancelTasks, CancelTasksResult
from evershell.core.change import Hold, IdempotencyKey
from evershell.core.event import AuditEntry, AuditFilter, Event, Origin
from evershell.core.hold import HoldOrg
from evershell.core.runtime import Directive
from evershell.core.task import (
    MAX_TOOL_CALLS,
    AgentEvent,
    IterationCompleted,
    Phase,
    Task,
    TaskEnded,
    TaskLimits,
    TaskStarted,
    TaskStatus,
)
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from evershell.core.tasks import SubmitTask
from evershell.core.validation import Page
from evershell.core.watch_events import Heartbeat
from evershell.core.workspace import AgentCard, Workspace
from evershell.pod.messages import encode_assignment

_OUTCOMES = workspace_service_pb2.CancelTasksResult.Outcome
_Message = TypeVar("_Message")
# The statuses that an agent may propose for the end of a task.
_PROPOSABLE = {
    int(task_pb2.Task.Status.Value(status)): status
    for status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
}
_PHASES = {
    int(task_pb2.Task.Phase.Value(str(phase) or "phase_unspecified")): phase for phase in Phase
}
# The end of the year 9999, the last year of RFC 3339.
_MAX_SECONDS = 253_402_300_799
_NANOS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Item = TypeVar("_Item")
# 50 large tasks take about 2 ms to encode.
_ITEMS_AT_ONCE = 50


def decode_cancel(request: workspace_service_pb2.CancelTaskRequest, origin: Origin) -> CancelTask:
    """The request. Raises Failure validation_error."""
    return CancelTask(
        workspace_id=request.workspace_id,
        task_id=request.task_id or None,
        reason=request.reason,
        wait_seconds=duration_seconds(request.wait) if request.HasField("wait") else None,
        force_after_seconds=duration_seconds(request.force_after)
        if request.HasField("force_after")
        else None,
        include_descendants=request.include_descendants,
        origin=origin,
    )


def decode_cancel_child(
    request: runtime_service_pb2.CancelChildRequest, origin: Origin
) -> CancelTask:
    """The request. Raises Failure validation_error."""
    return CancelTask(
        workspace_id=request.workspace_id,
        task_id=request.task_id,
        reason=request.reason,
        force_after_seconds=duration_seconds(request.force_after)
        if request.HasField("force_after")
        else None,
        origin=origin,
    )


def decode_page(
    request: workspace_service_pb2.ListTasksRequest
    | workspace_service_pb2.ListWorkspacesRequest
    | workspace_service_pb2.ListAuditEntriesRequest,
    org_id: str,
) -> Page:
    """The page of the organization's list that the other fields select.

    Raises Failure validation_error.
    """
    selection = type(request)()
    selection.MergeFrom(request)  # type: ignore[arg-type]
    selection.ClearField("page_size")
    selection.ClearField("page_token")
    listed = f"{request.DESCRIPTOR.name} {org_id} ".encode()
    listed += selection.SerializeToString(deterministic=True)
    return Page.of(request.page_size, request.page_token, listed)


def encode_cancel(result: CancelResult) -> workspace_service_pb2.CancelTaskResponse:
    """The reply. Requester, time and reason are those of the call that recorded the intent."""
    task = result.task
    intent = task.cancel if task is not None else None
    return workspace_service_pb2.CancelTaskResponse(
        workspace_id=result.workspace_id,
        task_id=task.id if task is not None else "",
        # The constructor takes the name of an enum value, and the fields of a message, which its
        # type does not say. A message in place of its fields would be serialized and parsed again.
        outcome=cast(Any, str(result.outcome)),
        requested_at=timestamp(intent.requested_at) if intent is not None else None,
        requested_by=intent.requested_by if intent is not None else "",
        reason=intent.reason if intent is not None else "",
        task=cast(Any, _task_fields(task)) if task is not None else None,
        descendants_cancelled=result.descendants_cancelled,
    )


def decode_cancel_tasks(
    request: workspace_service_pb2.CancelTasksRequest, origin: Origin
) -> CancelTasks:
    """The request. Raises Failure validation_error."""
    return CancelTasks(
        wanted=_decode_selection(request),
        reason=request.reason,
        force_after_seconds=duration_seconds(request.force_after)
        if request.HasField("force_after")
        else None,
        dry_run=request.dry_run,
        origin=origin,
    )


def _decode_selection(request: workspace_service_pb2.CancelTasksRequest) -> TaskSelection:
    if request.HasField("filter"):
        if request.all:
            raise errors.invalid({"all": "must not be true if there is a `filter`"})
        return _decode_filter(request.filter)
    if not request.all:
        raise errors.invalid({"filter": "is missing; `all`: true cancels every task"})
    return AllTasks()


def _decode_filter(message: workspace_service_pb2.TaskFilter) -> TaskFilter:
    """Takes an empty list for none: a message does not tell them apart."""
    return TaskFilter(
        task_ids=tuple(message.task_ids) or None,
        workspace_ids=tuple(message.workspace_ids) or None,
        created_by_user_id=message.created_by_user_id
        if message.HasField("created_by_user_id")
        else None,
        submitted_by=message.submitted_by if message.HasField("submitted_by") else None,
        submitted_before=decode_time("filter.submitted_before", message.submitted_before)
        if message.HasField("submitted_before")
        else None,
        metadata=dict(message.metadata) or None,
    )


def encode_cancel_tasks(result: CancelTasksResult) -> workspace_service_pb2.CancelTasksResponse:
    """The reply."""
    return workspace_service_pb2.CancelTasksResponse(
        matched=result.matched,
        accepted=result.accepted,
        already_requested=result.already_requested,
        remaining=result.remaining,
        results=[
            workspace_service_pb2.CancelTasksResult(
                workspace_id=each.workspace_id,
                task_id=each.task_id,
                outcome=_OUTCOMES.Value(each.outcome),
            )
            for each in result.results
        ],
    )


def decode_hold(request: workspace_service_pb2.HoldOrgRequest, origin: Origin) -> HoldOrg:
    """The request. Raises Failure validation_error."""
    return HoldOrg(reason=request.reason, cancel_running=request.cancel_running, origin=origin)


def encode_held(hold: Hold, cancelled: CancelTasksResult) -> workspace_service_pb2.HoldOrgResponse:
    """The reply."""
    return workspace_service_pb2.HoldOrgResponse(
        hold=encode_hold(hold.org_id, hold),
        accepted=cancelled.accepted,
        already_requested=cancelled.already_requested,
        remaining=cancelled.remaining,
    )


def encode_caller(caller: Caller) -> caller_pb2.Caller:
    """The caller, with the scopes in alphabetical order."""
    return caller_pb2.Caller(
        org_id=caller.org_id,
        actor_id=caller.actor_id,
        credential_kind=caller.credential_kind,
        scopes=sorted(caller.scopes),
        expires_at=timestamp(caller.expires_at),
    )


def encode_hold(org_id: str, hold: Hold | None) -> hold_pb2.Hold:
    """The hold of the organization, or that it has none."""
    if hold is None:
        return hold_pb2.Hold(org_id=org_id)
    return hold_pb2.Hold(
        org_id=org_id,
        on_hold=True,
        held_by=hold.held_by,
        held_since=timestamp(hold.held_since),
        reason=hold.reason,
    )


def decode_submit(
    request: workspace_service_pb2.SubmitTaskRequest | runtime_service_pb2.SubmitChildRequest,
    origin: Origin,
    key: IdempotencyKey | None = None,
    model_without_price: str = "",
) -> SubmitTask:
    """The request. Raises Failure validation_error."""
    return SubmitTask(
        workspace_id=request.workspace_id,
        description=request.description,
        metadata=dict(request.metadata),
        max_iterations=request.max_iterations,
        limits=decode_limits(request.limits),
        parent_task_id=request.parent_task_id or None,
        origin=origin,
        key=key,
        model_without_price=model_without_price,
    )


def encode_task(task: Task) -> task_pb2.Task:
    """The public fields of the task."""
    return task_pb2.Task(**_task_fields(task))


def _task_fields(task: Task) -> dict[str, Any]:
    """The public fields of the task, for the constructor of its message."""
    intent, usage = task.cancel, task.usage
    return {
        "id": task.id,
        "workspace_id": task.workspace_id,
        "description": task.description,
        "status": str(task.status),
        "phase": str(task.phase) or "phase_unspecified",
        "iterations": task.iterations,
        "created_at": timestamp(task.created_at),
        "started_at": timestamp(task.started_at),
        "completed_at": timestamp(task.completed_at),
        "cancel_requested_at": timestamp(intent.requested_at) if intent is not None else None,
        "cancel_requested_by": intent.requested_by if intent is not None else "",
        "cancel_reason": intent.reason if intent is not None else "",
        "cancel_force_at": timestamp(intent.force_at) if intent is not None else None,
        "reason": task.reason,
        "result": task.result,
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "model_calls": usage.model_calls,
            "tool_calls": usage.tool_calls,
            "cost": _money_fields(usage.cost_nanos),
        },
        "forced": task.forced,
        "metadata": task.metadata,
        "max_iterations": task.max_iterations,
        "submitted_by": task.submitted_by,
        "limits": limits_fields(task.limits),
        "parent_task_id": task.parent_id,
        "root_task_id": task.root_id,
    }


def decode_card(request: workspace_service_pb2.CreateWorkspaceRequest) -> AgentCard | None:
    """The agent card; None without a field of it. Raises Failure validation_error."""
    if not (request.description or request.skills or request.public_card):
        return None
    return AgentCard(
        description=request.description,
        skills=dict(request.skills),
        is_public=request.public_card,
    )


def encode_workspace(workspace: Workspace) -> workspace_pb2.Workspace:
    """The public fields of the workspace."""
    return workspace_pb2.Workspace(
        id=workspace.id,
        org_id=workspace.org_id,
        status=workspace_pb2.Workspace.Status.Value(workspace.status),
        created_by_user_id=workspace.created_by_user_id or "",
        created_at=timestamp(workspace.created_at),
        updated_at=timestamp(workspace.updated_at),
        current_task_id=workspace.current_task_id or "",
        status_reason=workspace.status_reason,
        epoch=workspace.epoch,
        name=workspace.name,
    )


def decode_audit_filter(request: workspace_service_pb2.ListAuditEntriesRequest) -> AuditFilter:
    """The filter. Raises Failure validation_error."""
    return AuditFilter(
        workspace_id=request.workspace_id,
        task_id=request.task_id,
        actor_id=request.actor_id,
        rpc=request.rpc,
        outcome=request.outcome,
        start_time=decode_time("start_time", request.start_time)
        if request.HasField("start_time")
        else None,
        end_time=decode_time("end_time", request.end_time)
        if request.HasField("end_time")
        else None,
    )


def decode_time(field: str, time: Timestamp) -> datetime:
    """The time. Raises Failure validation_error, which names the field."""
    if not 0 <= time.seconds <= _MAX_SECONDS:
        raise errors.invalid({field: "must be within the years 1970 to 9999"})
    return time.ToDatetime(UTC)


def encode_audit_entry(entry: AuditEntry) -> audit_pb2.AuditEntry:
    """All fields of the entry."""
    return audit_pb2.AuditEntry(
        id=entry.id,
        time=timestamp(entry.time),
        org_id=entry.org_id,
        actor_id=entry.actor_id,
        credential_kind=entry.credential_kind,
        credential_id=entry.credential_id,
        rpc=entry.rpc,
        workspace_id=entry.workspace_id,
        task_id=entry.task_id,
        outcome=entry.outcome,
        reason=entry.reason,
        request_id=entry.request_id,
        trace_id=entry.trace_id,
        client_address=entry.client_address,
    )


def encode_heartbeat(heartbeat: Heartbeat) -> workspace_service_pb2.WatchEventsResponse:
    """A message of the stream of WatchEvents."""
    return workspace_service_pb2.WatchEventsResponse(
        heartbeat=workspace_service_pb2.Heartbeat(time=timestamp(heartbeat.time), seq=heartbeat.seq)
    )


class EventEncoder(Generic[_Message]):
    """Encodes batches of events. Watchers that share a read share its messages too.

    They receive the batch one after the other, so only the last one is kept.
    """

    def __init__(self, encode: Callable[[Sequence[Event]], Sequence[_Message]]) -> None:
        self._encode = encode
        self._events: Sequence[Event] = ()
        self._messages: Sequence[_Message] = ()

    def __call__(self, events: Sequence[Event]) -> Sequence[_Message]:
        """The message for each event. Do not change them."""
        if events is not self._events:
            self._messages = self._encode(events)
            self._events = events
        return self._messages


def encode_events(events: Sequence[Event]) -> Sequence[workspace_service_pb2.WatchEventsResponse]:
    """A message of the stream of WatchEvents for each event."""
    return [encode_event(event) for event in events]


def encode_event(item: Event) -> workspace_service_pb2.WatchEventsResponse:
    """A message of the stream of WatchEvents."""
    # The constructor also takes the fields of a message as a mapping, which its type does not say.
    event: Any = {
        "seq": item.seq,
        "type": item.type,
        "time": timestamp(item.time),
        "workspace_id": item.workspace_id,
        "task_id": item.task_id or "",
        "request_id": item.origin.request_id,
        "trace_id": item.origin.trace_id,
    }
    # The constructor is an order of magnitude faster than ParseDict, with the same result.
    try:
        event[item.type] = payloads.convert(item.type, item.payload)
        return workspace_service_pb2.WatchEventsResponse(event=event)
    except (payloads.UnusualError, ValueError):
        event[item.type] = payloads.parse(item.type, item.payload)
        return workspace_service_pb2.WatchEventsResponse(event=event)


def encode_directive(
    directive: Directive, lease_seconds: float, now: datetime
) -> runtime_service_pb2.Directive:
    """The directive in a reply to an agent. `lease_seconds` is the length of a lease."""
    message = runtime_service_pb2.Directive(
        fenced=directive.fenced,
        lease_ms=max(0, int((directive.lease_seconds or 0) * 1000)),
        lease_length_ms=int(lease_seconds * 1000),
    )
    if directive.task is not None:
        message.task.CopyFrom(encode_assignment(directive.task, now))
    return message


def decode_agent_events(events: Iterable[runtime_service_pb2.TaskEvent]) -> list[AgentEvent]:
    """The events of a commit. Raises BreachError."""
    # One more than is allowed, so that the core refuses them without all of them being decoded.
    return [_decode_agent_event(event) for event in islice(events, MAX_EVENTS + 1)]


def _decode_agent_event(event: runtime_service_pb2.TaskEvent) -> AgentEvent:
    match event.WhichOneof("event"):
        case "task_started":
            return TaskStarted()
        case "iteration_completed":
            iteration = event.iteration_completed
            size_bytes = iteration.ByteSize()
            # One more than is allowed, as of the events.
            del iteration.tool_calls[MAX_TOOL_CALLS + 1 :]
            payload = rest_fields(iteration)
            if not iteration.tool_calls:
                del payload["tool_calls"]
            return IterationCompleted(iteration.number, payload, size_bytes)
        case "task_ended":
            ended = event.task_ended
            status = _PROPOSABLE.get(ended.status)
            if status is None:
                raise BreachError(f"its agent proposed an end with the status {ended.status}")
            return TaskEnded(
                status=status, result=ended.result, reason=ended.reason, forced=ended.forced
            )
        case _:
            raise BreachError("its agent committed an event of an unknown kind")


def decode_phase(phase: int) -> Phase:
    """The phase that an agent reports. Raises BreachError."""
    decoded = _PHASES.get(phase)
    if decoded is None:
        raise BreachError(f"its agent reported the unknown phase {phase}")
    return decoded


def duration_seconds(duration: Duration) -> float:
    """The duration in seconds."""
    return duration.seconds + duration.nanos / _NANOS


def decode_limits(message: task_pb2.TaskLimits) -> TaskLimits:
    """The limits. Fields that are absent are None. Raises Failure validation_error."""
    return TaskLimits(
        max_duration_seconds=duration_seconds(message.max_duration)
        if message.HasField("max_duration")
        else None,
        max_total_tokens=message.max_total_tokens if message.HasField("max_total_tokens") else None,
        max_cost_nanos=_nanos("limits.max_cost", message.max_cost)
        if message.HasField("max_cost")
        else None,
        force_after_seconds=duration_seconds(message.force_after)
        if message.HasField("force_after")
        else None,
        include_descendants=message.include_descendants,
    )


def _nanos(field: str, amount: Money) -> int:
    """The amount in nano-dollars. Raises Failure validation_error, which names the field."""
    if amount.currency_code != money.CURRENCY:
        raise errors.invalid({field: f"must have the currency_code {money.CURRENCY}"})
    if not 0 <= amount.nanos < _NANOS or amount.units < 0:
        raise errors.invalid({field: f"must have units from 0 and nanos from 0 to {_NANOS - 1:,}"})
    return int(amount.units) * _NANOS + int(amount.nanos)


def _money_fields(nanos: int | None) -> Any:
    return None if nanos is None else money.fields(nanos)


def limits_fields(limits: TaskLimits) -> Any:
    """The fields for the constructor of the message; None without limits."""
    if not limits.are_set:
        return None
    return {
        "max_duration": _duration_fields(limits.max_duration_seconds),
        "max_total_tokens": limits.max_total_tokens,
        "max_cost": _money_fields(limits.max_cost_nanos),
        "force_after": _duration_fields(limits.force_after_seconds),
        "include_descendants": limits.include_descendants,
    }


def _duration_fields(seconds: float | None) -> Any:
    if seconds is None:
        return None
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return {"seconds": whole, "nanos": nanos}


async def encode_page(
    items: Sequence[_Item], encode: Callable[[_Item], _Message]
) -> Sequence[_Message]:
    """Encodes the items of a list. Lets other calls run between its parts."""
    messages = []
    for index, item in enumerate(items, start=1):
        messages.append(encode(item))
        if index % _ITEMS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return messages


def rest_fields(message: Message) -> dict[str, Any]:
    """The fields of the message as REST shows them."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def timestamp(moment: datetime | None) -> Any:
    """The time for a Timestamp field in the constructor of a message; None for an absent field.

    The constructor takes the fields of a message as a mapping, which its type does not say. A
    message in its place is copied by serializing and parsing it, which takes longer.
    """
    if moment is None:
        return None
    since = moment - _EPOCH
    return {
        "seconds": since.days * 86_400 + since.seconds,
        "nanos": since.microseconds * 1000,
    }
