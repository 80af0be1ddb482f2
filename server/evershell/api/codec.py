"""Converts between the messages of WorkspaceService and the objects of the core."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import (
    audit_pb2,
    caller_pb2,
    hold_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
)

from evershell.api.values import (
    decode_nanos,
    decode_time,
    duration_fields,
    duration_seconds,
    money_fields,
    timestamp,
)
from evershell.core import errors
from evershell.core.bulk import BulkResult
from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelResult, CancelTask
from evershell.core.cancel_tasks import CancelTasks
from evershell.core.change import Hold, IdempotencyKey
from evershell.core.event import AuditEntry, AuditFilter, Origin
from evershell.core.hold import HoldOrg
from evershell.core.resume_workspaces import ResumeWorkspaces
from evershell.core.task import CurrentIteration, Phase, Task, TaskLimits
from evershell.core.task_filter import AllTasks, OrgListFilter, TaskFilter, TaskSelection
from evershell.core.tasks import SubmitTask
from evershell.core.validation import Page
from evershell.core.workspace import AgentCard, Workspace
from evershell.core.workspace_filter import AllWorkspaces, WorkspaceFilter, WorkspaceSelection
from evershell.pod.messages import encode_phase

_OUTCOMES = workspace_service_pb2.CancelTasksResult.Outcome
_Item = TypeVar("_Item")
_Message = TypeVar("_Message")
# How many items are encoded before other calls run. 50 large tasks take about 2 ms.
_ITEMS_AT_ONCE = 50


def decode_cancel(request: workspace_service_pb2.CancelTaskRequest, origin: Origin) -> CancelTask:
    """Decodes the request. Raises Failure validation_error."""
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


def decode_page(
    request: workspace_service_pb2.ListTasksRequest
    | workspace_service_pb2.ListWorkspacesRequest
    | workspace_service_pb2.ListAuditEntriesRequest,
    org_id: str,
) -> Page:
    """The requested page. Its token is valid only for this organization and the same filters.

    Raises Failure validation_error.
    """
    selection = type(request)()
    selection.MergeFrom(request)  # type: ignore[arg-type]
    selection.ClearField("page_size")
    selection.ClearField("page_token")
    listed = f"{request.DESCRIPTOR.name} {org_id} ".encode()
    listed += selection.SerializeToString(deterministic=True)
    return Page.of(request.page_size, request.page_token, listed)


def decode_list_filter(request: workspace_service_pb2.ListTasksRequest) -> OrgListFilter:
    """The filter: the request's fields without the page fields. Raises Failure validation_error."""
    values = {each.name: getattr(request, each.name) for each in dataclasses.fields(OrgListFilter)}
    return OrgListFilter(**values | {"workspace_ids": tuple(request.workspace_ids)})


def encode_cancel(result: CancelResult) -> workspace_service_pb2.CancelTaskResponse:
    """Encodes the reply.

    The requester, the time and the reason come from the call that recorded the cancellation.
    """
    task = result.task
    intent = task.cancel if task is not None else None
    return workspace_service_pb2.CancelTaskResponse(
        workspace_id=result.workspace_id,
        task_id=task.id if task is not None else "",
        # Contrary to its type hints, the constructor also accepts the name of an enum value, and a
        # mapping with the fields of a message. A message would be copied by serializing and parsing
        # it.
        outcome=cast(Any, str(result.outcome)),
        requested_at=timestamp(intent.requested_at) if intent is not None else None,
        requested_by=intent.requested_by if intent is not None else "",
        reason=intent.reason if intent is not None else "",
        task=cast(Any, _task_fields(task)) if task is not None else None,
        descendants_cancelled=result.descendants_cancelled,
    )


def decode_cancel_tasks(
    request: workspace_service_pb2.CancelTasksRequest,
    origin: Origin,
    key: IdempotencyKey | None = None,
) -> CancelTasks:
    """Decodes the request. Raises Failure validation_error."""
    return CancelTasks(
        wanted=_decode_selection(request),
        reason=request.reason,
        force_after_seconds=duration_seconds(request.force_after)
        if request.HasField("force_after")
        else None,
        dry_run=request.dry_run,
        key=key,
        origin=origin,
    )


def _decode_selection(request: workspace_service_pb2.CancelTasksRequest) -> TaskSelection:
    return _decode_filter(request.filter) if _has_filter(request, "task") else AllTasks()


def _has_filter(
    request: workspace_service_pb2.CancelTasksRequest
    | workspace_service_pb2.ResumeWorkspacesRequest,
    item: str,
) -> bool:
    """Whether the request has a filter. Otherwise it has `all`. Raises Failure validation_error."""
    if request.HasField("filter"):
        if request.all:
            raise errors.invalid({"all": "must not be true if there is a `filter`"})
        return True
    if not request.all:
        raise errors.invalid({"filter": f"is missing; for every {item}, set `all` to true"})
    return False


def _decode_filter(message: workspace_service_pb2.TaskFilter) -> TaskFilter:
    """Treats an empty list as an absent list, because protobuf does not distinguish them."""
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


def encode_cancel_tasks(result: BulkResult) -> workspace_service_pb2.CancelTasksResponse:
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


def decode_resume_workspaces(
    request: workspace_service_pb2.ResumeWorkspacesRequest,
    origin: Origin,
    key: IdempotencyKey | None,
) -> ResumeWorkspaces:
    """Decodes the request. Raises Failure validation_error."""
    wanted: WorkspaceSelection = AllWorkspaces()
    if _has_filter(request, "failed workspace"):
        message = request.filter
        has_creator = message.HasField("created_by_user_id")
        wanted = WorkspaceFilter(
            workspace_ids=tuple(message.workspace_ids) or None,
            created_by_user_id=message.created_by_user_id if has_creator else None,
        )
    return ResumeWorkspaces(wanted=wanted, dry_run=request.dry_run, key=key, origin=origin)


def encode_resume_workspaces(
    result: BulkResult,
) -> workspace_service_pb2.ResumeWorkspacesResponse:
    """The reply."""
    outcomes = workspace_service_pb2.ResumeWorkspacesResult.Outcome
    return workspace_service_pb2.ResumeWorkspacesResponse(
        matched=result.matched,
        accepted=result.accepted,
        remaining=result.remaining,
        results=[
            workspace_service_pb2.ResumeWorkspacesResult(
                workspace_id=each.workspace_id, outcome=outcomes.Value(each.outcome)
            )
            for each in result.results
        ],
    )


def decode_hold(request: workspace_service_pb2.HoldOrgRequest, origin: Origin) -> HoldOrg:
    """Decodes the request. Raises Failure validation_error."""
    return HoldOrg(reason=request.reason, cancel_running=request.cancel_running, origin=origin)


def encode_held(hold: Hold, cancelled: BulkResult) -> workspace_service_pb2.HoldOrgResponse:
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
    """The hold of the organization. If `hold` is None, only `org_id` is set."""
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
    """Decodes the request. Raises Failure validation_error."""
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


def encode_current_iteration(
    request: workspace_service_pb2.GetCurrentIterationRequest,
    phase: Phase,
    current: CurrentIteration,
) -> task_pb2.CurrentIteration:
    """The reply to GetCurrentIteration."""
    return task_pb2.CurrentIteration(
        workspace_id=request.workspace_id,
        task_id=request.task_id,
        number=current.number,
        phase=encode_phase(phase),
        calls=[
            task_pb2.RunningCall(
                phase=encode_phase(call.phase),
                name=call.name,
                arguments=call.arguments,
                duration_ms=call.duration_ms,
                output=call.output,
            )
            for call in current.calls
        ],
    )


def _task_fields(task: Task) -> dict[str, Any]:
    """The public fields of the task, for the constructor of its message."""
    intent, usage = task.cancel, task.used
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
            "cost": money_fields(usage.cost_nanos),
        },
        "forced": task.forced,
        "iteration_lost": task.iteration_lost,
        "metadata": task.metadata,
        "max_iterations": task.max_iterations,
        "submitted_by": task.submitted_by,
        "limits": limits_fields(task.limits),
        "parent_task_id": task.parent_id,
        "root_task_id": task.root_id,
    }


def decode_card(request: workspace_service_pb2.CreateWorkspaceRequest) -> AgentCard | None:
    """The agent card; None if none of its fields is set. Raises Failure validation_error."""
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


def decode_limits(message: task_pb2.TaskLimits) -> TaskLimits:
    """The limits. Fields that are absent are None. Raises Failure validation_error."""
    return TaskLimits(
        max_duration_seconds=duration_seconds(message.max_duration)
        if message.HasField("max_duration")
        else None,
        max_total_tokens=message.max_total_tokens if message.HasField("max_total_tokens") else None,
        max_cost_nanos=decode_nanos("limits.max_cost", message.max_cost)
        if message.HasField("max_cost")
        else None,
        force_after_seconds=duration_seconds(message.force_after)
        if message.HasField("force_after")
        else None,
        include_descendants=message.include_descendants,
    )


def limits_fields(limits: TaskLimits) -> Any:
    """The fields of TaskLimits, for the constructor of a message; None without limits."""
    if not limits.are_set:
        return None
    return {
        "max_duration": duration_fields(limits.max_duration_seconds),
        "max_total_tokens": limits.max_total_tokens,
        "max_cost": money_fields(limits.max_cost_nanos),
        "force_after": duration_fields(limits.force_after_seconds),
        "include_descendants": limits.include_descendants,
    }


async def encode_page(
    items: Sequence[_Item], encode: Callable[[_Item], _Message]
) -> Sequence[_Message]:
    """Encodes the items of a list in parts, and lets other calls run between them."""
    messages = []
    for index, item in enumerate(items, start=1):
        messages.append(encode(item))
        if index % _ITEMS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return messages
