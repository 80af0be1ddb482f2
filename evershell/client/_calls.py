"""The calls of the service, without the way in which they are made.

Each function makes a Call from the arguments of a client's method. Both clients use them.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from evershell.workspace.v1 import workspace_service_pb2 as service
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.client._messages import Result
from evershell.client.pages import Page
from evershell.client.types import (
    AuditEntry,
    CancelResult,
    CancelTasksResult,
    Hold,
    HoldResult,
    SubmittedTask,
    Task,
    TaskFilter,
    TaskLimits,
    Workspace,
)

T = TypeVar("T")
R = TypeVar("R", bound=Result)

Seconds = float | timedelta


class Repeat(Enum):
    """When a failed call may be made again."""

    ALWAYS = auto()
    """A read, or a call that has the same effect when it is repeated."""
    WITHOUT_EFFECT = auto()
    """Only if the service refused it before it had an effect."""
    NEVER = auto()
    """A repeated cancellation without a task id could cancel the next task."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call of one method of the service."""

    rpc: str
    request: Message
    # Makes the result from the response and the request id.
    decode: Callable[[Any, str], T]
    repeat: Repeat
    # How long the service may take in addition to the client's timeout.
    extra_seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


def cancel(
    workspace_id: str,
    task_id: str | None,
    reason: str,
    wait: Seconds | None,
    force_after: Seconds | None,
) -> Call[CancelResult]:
    """CancelTask."""
    request = service.CancelTaskRequest(
        workspace_id=workspace_id,
        task_id=task_id or "",
        reason=reason,
        wait=_duration(wait),
        force_after=_duration(force_after),
    )
    repeat = Repeat.ALWAYS if task_id else Repeat.NEVER
    return Call("CancelTask", request, _with_id(CancelResult), repeat, seconds(wait or 0.0))


def submit_task(
    workspace_id: str,
    description: str,
    metadata: Mapping[str, str] | None,
    max_iterations: int | None,
    limits: TaskLimits | None,
    idempotency_key: str | None,
) -> Call[SubmittedTask]:
    """SubmitTask."""
    request = service.SubmitTaskRequest(
        workspace_id=workspace_id,
        description=description,
        metadata=metadata,
        max_iterations=max_iterations or 0,
        limits=None if limits is None else limits._to_message(),
    )
    decode, headers = _with_id(SubmittedTask), _idempotent(idempotency_key)
    return Call("SubmitTask", request, decode, Repeat.ALWAYS, headers=headers)


def get_task(workspace_id: str, task_id: str) -> Call[Task]:
    """GetTask."""
    request = service.GetTaskRequest(workspace_id=workspace_id, task_id=task_id)
    return Call("GetTask", request, _only(Task), Repeat.ALWAYS)


def list_tasks(workspace_id: str, page_size: int, page_token: str) -> Call[Page[Task]]:
    """ListTasks."""
    request = service.ListTasksRequest(
        workspace_id=workspace_id, page_size=page_size, page_token=page_token
    )
    return Call("ListTasks", request, _page("tasks", Task), Repeat.ALWAYS)


def create_workspace(name: str, idempotency_key: str | None) -> Call[Workspace]:
    """CreateWorkspace."""
    request = service.CreateWorkspaceRequest(name=name)
    decode, headers = _only(Workspace), _idempotent(idempotency_key)
    return Call("CreateWorkspace", request, decode, Repeat.ALWAYS, headers=headers)


def get_workspace(workspace_id: str) -> Call[Workspace]:
    """GetWorkspace."""
    request = service.GetWorkspaceRequest(workspace_id=workspace_id)
    return Call("GetWorkspace", request, _only(Workspace), Repeat.ALWAYS)


def list_workspaces(page_size: int, page_token: str) -> Call[Page[Workspace]]:
    """ListWorkspaces."""
    request = service.ListWorkspacesRequest(page_size=page_size, page_token=page_token)
    return Call("ListWorkspaces", request, _page("workspaces", Workspace), Repeat.ALWAYS)


def stop_workspace(workspace_id: str) -> Call[Workspace]:
    """StopWorkspace."""
    request = service.StopWorkspaceRequest(workspace_id=workspace_id)
    return Call("StopWorkspace", request, _only(Workspace), Repeat.WITHOUT_EFFECT)


def resume_workspace(workspace_id: str) -> Call[Workspace]:
    """ResumeWorkspace."""
    request = service.ResumeWorkspaceRequest(workspace_id=workspace_id)
    return Call("ResumeWorkspace", request, _only(Workspace), Repeat.WITHOUT_EFFECT)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries of the audit log to list. None matches all."""

    workspace_id: str | None = None
    task_id: str | None = None
    actor_id: str | None = None
    rpc: str | None = None
    outcome: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


def list_audit_entries(
    matching: AuditFilter, page_size: int, page_token: str
) -> Call[Page[AuditEntry]]:
    """ListAuditEntries."""
    request = service.ListAuditEntriesRequest(
        workspace_id=matching.workspace_id or "",
        task_id=matching.task_id or "",
        actor_id=matching.actor_id or "",
        rpc=matching.rpc or "",
        outcome=matching.outcome or "",
        start_time=_timestamp(matching.start_time),
        end_time=_timestamp(matching.end_time),
        page_size=page_size,
        page_token=page_token,
    )
    return Call("ListAuditEntries", request, _page("entries", AuditEntry), Repeat.ALWAYS)


def cancel_tasks(
    wanted: TaskFilter | None, reason: str, force_after: Seconds | None, dry_run: bool
) -> Call[CancelTasksResult]:
    """CancelTasks."""
    request = service.CancelTasksRequest(
        filter=None if wanted is None else _filter(wanted),
        reason=reason,
        force_after=_duration(force_after),
        dry_run=dry_run,
    )
    return Call("CancelTasks", request, _with_id(CancelTasksResult), Repeat.ALWAYS)


def _filter(wanted: TaskFilter) -> service.TaskFilter:
    return service.TaskFilter(
        workspace_ids=wanted.workspace_ids,
        created_by_user_id=wanted.created_by_user_id or "",
        submitted_by=wanted.submitted_by or "",
        submitted_before=_timestamp(wanted.submitted_before),
        metadata=wanted.metadata,
    )


def hold(reason: str, cancel_running: bool) -> Call[HoldResult]:
    """HoldOrg."""
    request = service.HoldOrgRequest(reason=reason, cancel_running=cancel_running)
    return Call("HoldOrg", request, _with_id(HoldResult), Repeat.ALWAYS)


def release() -> Call[Hold]:
    """ReleaseOrg."""
    # A repeat could end the hold that someone has set in between.
    return Call("ReleaseOrg", service.ReleaseOrgRequest(), _only(Hold), Repeat.WITHOUT_EFFECT)


def get_hold() -> Call[Hold]:
    """GetHold."""
    return Call("GetHold", service.GetHoldRequest(), _only(Hold), Repeat.ALWAYS)


def seconds(time: Seconds) -> float:
    """The duration in seconds."""
    return time.total_seconds() if isinstance(time, timedelta) else float(time)


def _idempotent(key: str | None) -> tuple[tuple[str, str], ...]:
    """The header with which the service gives a repeated call the first answer."""
    return (("idempotency-key", str(uuid.uuid4()) if key is None else key),)


def _duration(time: Seconds | None) -> Duration | None:
    if time is None:
        return None
    duration = Duration()
    duration.FromMilliseconds(round(seconds(time) * 1000))
    return duration


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    # A time without a zone is local time.
    timestamp.FromDatetime(moment.astimezone())
    return timestamp


def _only(kind: type[R]) -> Callable[[Any, str], R]:
    return lambda response, _: kind._from_message(response)


def _with_id(kind: type[R]) -> Callable[[Any, str], R]:
    return lambda response, request_id: replace(  # type: ignore[type-var]
        kind._from_message(response), request_id=request_id
    )


def _page(name: str, kind: type[R]) -> Callable[[Any, str], Page[R]]:
    return lambda response, _: Page(
        tuple(kind._from_message(each) for each in getattr(response, name)),
        response.next_page_token or None,
    )
