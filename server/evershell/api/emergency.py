"""Converts the messages about many tasks and about holds."""

from evershell.workspace.v1 import hold_pb2, workspace_service_pb2

from evershell.api.codec import decode_time, duration_seconds
from evershell.core import errors
from evershell.core.cancel_tasks import CancelTasks, CancelTasksResult
from evershell.core.change import Hold
from evershell.core.event import Origin
from evershell.core.holds import HoldOrg
from evershell.core.task_filter import AllTasks, TaskFilter, TaskSelection
from evershell.pod.messages import timestamp

_OUTCOMES = workspace_service_pb2.CancelTasksResult.Outcome


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
