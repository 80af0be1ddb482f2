"""The calls of the service, apart from how they are sent.

Each function makes a Call from the arguments of a client's method. The client refuses what no
message can hold, and an empty id for "any".
"""

import dataclasses
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from evershell.workspace.v1 import workspace_service_pb2 as service
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.client._messages import Result
from evershell.client.answers import Page
from evershell.client.errors import ConfigurationError, ValidationError
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
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Result)

Seconds = float | timedelta

# gRPC treats later deadlines as expired.
LONGEST_SECONDS = 1e9
_KEY_HEADER = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call of one method of the service."""

    rpc: str
    request: Message
    # Makes the result from the response and the request id.
    decode: Callable[[Any, str], T]
    # How long the service may take in addition to the client's timeout.
    extra_seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def can_repeat(self) -> bool:
        """Whether it can be made again after a failure, without another effect."""
        method = service.DESCRIPTOR.services_by_name["WorkspaceService"].methods_by_name[self.rpc]
        match method.GetOptions().Extensions[service.edge].repeat:
            case service.EdgeRule.always:
                return True
            case service.EdgeRule.if_task_is_named:
                assert isinstance(self.request, service.CancelTaskRequest)
                return bool(self.request.task_id)
            case service.EdgeRule.with_idempotency_key:
                return any(name == _KEY_HEADER for name, _ in self.headers)
        return False


def cancel(
    workspace_id: str,
    task_id: str | None,
    reason: str,
    wait: Seconds | None,
    force_after: Seconds | None,
) -> Call[CancelResult]:
    """CancelTask."""
    message = request(
        service.CancelTaskRequest,
        workspace_id=workspace_id,
        task_id=optional("task_id", task_id),
        reason=reason,
        wait=duration("wait", wait),
        force_after=duration("force_after", force_after),
    )
    return Call("CancelTask", message, _with_id(CancelResult), max(seconds(wait or 0.0), 0.0))


def submit_task(
    workspace_id: str,
    description: str,
    metadata: Mapping[str, str] | None,
    max_iterations: int | None,
    limits: TaskLimits | None,
    idempotency_key: str | None,
) -> Call[SubmittedTask]:
    """SubmitTask."""
    message = request(
        service.SubmitTaskRequest,
        workspace_id=workspace_id,
        description=description,
        metadata=metadata,
        max_iterations=max_iterations or 0,
        limits=None if limits is None else valid("limits", limits._to_message),
    )
    decode, headers = _with_id(SubmittedTask), _idempotent(idempotency_key)
    return Call("SubmitTask", message, decode, headers=headers)


def get_task(workspace_id: str, task_id: str) -> Call[Task]:
    """GetTask."""
    message = request(service.GetTaskRequest, workspace_id=workspace_id, task_id=task_id)
    return Call("GetTask", message, _only(Task))


def list_tasks(workspace_id: str, page_size: int, page_token: str) -> Call[Page[Task]]:
    """ListTasks."""
    message = request(
        service.ListTasksRequest,
        workspace_id=workspace_id,
        page_size=page_size,
        page_token=page_token,
    )
    return Call("ListTasks", message, _page("tasks", Task))


def create_workspace(name: str, idempotency_key: str | None) -> Call[Workspace]:
    """CreateWorkspace."""
    message = request(service.CreateWorkspaceRequest, name=name)
    decode, headers = _only(Workspace), _idempotent(idempotency_key)
    return Call("CreateWorkspace", message, decode, headers=headers)


def get_workspace(workspace_id: str) -> Call[Workspace]:
    """GetWorkspace."""
    message = request(service.GetWorkspaceRequest, workspace_id=workspace_id)
    return Call("GetWorkspace", message, _only(Workspace))


def list_workspaces(page_size: int, page_token: str) -> Call[Page[Workspace]]:
    """ListWorkspaces."""
    message = request(service.ListWorkspacesRequest, page_size=page_size, page_token=page_token)
    return Call("ListWorkspaces", message, _page("workspaces", Workspace))


def stop_workspace(workspace_id: str) -> Call[Workspace]:
    """StopWorkspace."""
    message = request(service.StopWorkspaceRequest, workspace_id=workspace_id)
    return Call("StopWorkspace", message, _only(Workspace))


def resume_workspace(workspace_id: str) -> Call[Workspace]:
    """ResumeWorkspace."""
    message = request(service.ResumeWorkspaceRequest, workspace_id=workspace_id)
    return Call("ResumeWorkspace", message, _only(Workspace))


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
    message = request(
        service.ListAuditEntriesRequest,
        workspace_id=optional("workspace_id", matching.workspace_id),
        task_id=optional("task_id", matching.task_id),
        actor_id=optional("actor_id", matching.actor_id),
        rpc=optional("rpc", matching.rpc),
        outcome=optional("outcome", matching.outcome),
        start_time=timestamp("start_time", matching.start_time),
        end_time=timestamp("end_time", matching.end_time),
        page_size=page_size,
        page_token=page_token,
    )
    return Call("ListAuditEntries", message, _page("entries", AuditEntry))


def cancel_tasks(
    wanted: TaskFilter | None,
    everything: bool,
    reason: str,
    force_after: Seconds | None,
    dry_run: bool,
) -> Call[CancelTasksResult]:
    """CancelTasks. Raises ValidationError unless there is either a filter or `everything`."""
    if wanted is None and not everything:
        raise invalid("filter", "is missing; all=True cancels every task")
    if wanted is not None and everything:
        raise invalid("all", "must not be true if there is a filter")
    message = request(
        service.CancelTasksRequest,
        filter=None if wanted is None else _filter(wanted),
        all=everything,
        reason=reason,
        force_after=duration("force_after", force_after),
        dry_run=dry_run,
    )
    return Call("CancelTasks", message, _with_id(CancelTasksResult))


def _filter(wanted: TaskFilter) -> service.TaskFilter:
    """Refuses empty fields: the service would take an empty list for none."""
    fields = {each.name: getattr(wanted, each.name) for each in dataclasses.fields(wanted)}
    present = {name: value for name, value in fields.items() if value is not None}
    if not present:
        raise invalid("filter", "must have a field; all=True cancels every task")
    present["submitted_before"] = timestamp("submitted_before", wanted.submitted_before)
    made = request(service.TaskFilter, **present)
    for name in present:
        # Not the value itself: a generator is never empty, but has no items the second time.
        if present[name] is not None and not getattr(made, name):
            raise invalid(name, "must not be empty; leave it out for any")
    return made


def hold(reason: str, cancel_running: bool) -> Call[HoldResult]:
    """HoldOrg."""
    message = request(service.HoldOrgRequest, reason=reason, cancel_running=cancel_running)
    return Call("HoldOrg", message, _with_id(HoldResult))


def release() -> Call[Hold]:
    """ReleaseOrg."""
    return Call("ReleaseOrg", service.ReleaseOrgRequest(), _only(Hold))


def get_hold() -> Call[Hold]:
    """GetHold."""
    return Call("GetHold", service.GetHoldRequest(), _only(Hold))


def _idempotent(key: str | None) -> tuple[tuple[str, str], ...]:
    """The header with which the service gives a repeated call the first answer."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise invalid(_KEY_HEADER, "must have 1 to 255 printable characters")
    return ((_KEY_HEADER, str(uuid.uuid4()) if key is None else key),)


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


def request(kind: type[M], **fields: Any) -> M:
    """The request. Raises ValidationError, which names the field that it cannot hold."""
    try:
        return kind(**fields)
    except ValueError:
        for name, value in fields.items():
            valid(name, partial(kind, **{name: value}))
        raise


def valid(name: str, make: Callable[[], T]) -> T:
    """The value of a field. Raises ValidationError if it cannot be made."""
    try:
        return make()
    except UnicodeError as error:
        raise invalid(name, "is not valid Unicode") from error
    except (ValueError, OverflowError) as error:
        raise invalid(name, "is out of range") from error


def invalid(name: str, problem: str) -> ValidationError:
    """The error of a field that is not valid. The call has not been made."""
    return ValidationError(
        f"The request is not valid. {name}: {problem}.",
        details={"fields": {name: problem}},
        is_from_service=False,
    )


def optional(name: str, value: str | None) -> str | None:
    """The value of a field that narrows a call. Raises ValidationError if it is empty."""
    if value == "":
        raise invalid(name, "must not be empty; leave it out for any")
    return value


def seconds(time: Seconds) -> float:
    """The duration in seconds. Raises ConfigurationError."""
    value = time.total_seconds() if isinstance(time, timedelta) else float(time)
    if math.isnan(value):
        raise ConfigurationError("A duration must be a number, not nan.")
    return value


def duration(name: str, time: Seconds | None) -> Duration | None:
    """The duration of a field, to the millisecond. Raises what `seconds` and `valid` raise."""
    if time is None:
        return None
    message = Duration()
    valid(name, lambda: message.FromMilliseconds(round(seconds(time) * 1000)))
    return message


def timestamp(name: str, moment: datetime | None) -> Timestamp | None:
    """The time of a field; one without a zone is local time. Raises ValidationError."""
    if moment is None:
        return None
    message = Timestamp()
    valid(name, lambda: message.FromDatetime(moment.astimezone()))
    return message
