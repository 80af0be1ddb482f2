"""The functions that decide every change to a workspace and its agent. See change.py."""

from dataclasses import replace
from datetime import datetime, timedelta

from evershell.core import event
from evershell.core.bounds import FORCE_MARGIN
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.event import EventType, NewEvent
from evershell.core.task import CancelIntent, Phase, Task, TaskStatus
from evershell.core.task_lifecycle import end_open_task, request_cancel
from evershell.core.workspace import WorkspaceStatus

# How long StopWorkspace and DeleteWorkspace let the current iteration continue.
STOP_GRACE_SECONDS = 10
_RUN_ENDED = "the stack was restarted"
# The statuses in which the workspace waits for the end of its pod. When the pod ends, the workspace
# has stopped or, if it is being deleted, can be removed.
_ENDS_POD = (WorkspaceStatus.STOPPING, WorkspaceStatus.DELETING)


def request_stop(locked: Locked, intent: CancelIntent) -> Change:
    """Begins to stop the workspace. Cancels its task, which is interrupted after the grace period.

    Raises Failure: workspace_failed, workspace_deleting.
    """
    workspace = locked.workspace
    if workspace.status in (WorkspaceStatus.STOPPING, WorkspaceStatus.STOPPED):
        return unchanged(locked)
    if workspace.status in (WorkspaceStatus.FAILED, WorkspaceStatus.DELETING):
        raise workspace.refusal()
    if workspace.status is WorkspaceStatus.SUSPENDED and not workspace.awaits_controller:
        return _stopped(unchanged(locked), intent.reason, intent.requested_at)
    return _begin_end(locked, WorkspaceStatus.STOPPING, intent)


def request_delete(locked: Locked, intent: CancelIntent) -> Change:
    """Begins to delete the workspace. Cancels its task like request_stop.

    If the workspace is being woken for the task and has no pod yet, no agent has the task, so the
    task ends at once.
    """
    if locked.workspace.status is WorkspaceStatus.DELETING:
        return unchanged(locked)
    begun = _begin_end(locked, WorkspaceStatus.DELETING, intent)
    if not begun.workspace.awaits_removal:
        return begun
    ended = end_open_task(
        Locked(begun.workspace, begun.task), intent.reason, intent.requested_at, work_stopped=True
    )
    return replace(ended, events=begun.events + ended.events)


def _begin_end(locked: Locked, status: WorkspaceStatus, intent: CancelIntent) -> Change:
    now = intent.requested_at
    forced = replace(
        intent,
        force_at=now + timedelta(seconds=STOP_GRACE_SECONDS),
        force_requested_by=intent.requested_by,
    )
    cancelled = request_cancel(locked, forced)
    ending = replace(locked.workspace, status=status, status_reason=intent.reason, updated_at=now)
    return Change(ending, cancelled.task, cancelled.events)


def resume(locked: Locked, now: datetime) -> Change:
    """Requests a new agent, in a new epoch.

    Raises Failure: invalid_state while stopping, workspace_deleting.
    """
    workspace = locked.workspace
    if workspace.status is WorkspaceStatus.DELETING:
        raise workspace.refusal()
    if workspace.is_up or workspace.status is WorkspaceStatus.PROVISIONING:
        return unchanged(locked)
    if workspace.status is WorkspaceStatus.STOPPING:
        message = f"Workspace {workspace.id} is still stopping. Resume it once it has stopped."
        raise Failure("invalid_state", message, workspace_id=workspace.id, status="stopping")
    return Change(workspace.in_new_epoch("", now), locked.task)


def place(locked: Locked, epoch: int, run_id: str, now: datetime, *, work_stopped: bool) -> Change:
    """Assigns the epoch's pod to the run `run_id` of the stack.

    If the pod was assigned to another run, the pod has ended. Then the workspace's task ends. The
    workspace gets a new epoch, or its stop is finished if it is stopping or being deleted.
    """
    workspace = locked.workspace
    if workspace.is_over(epoch) or workspace.run_id == run_id:
        return unchanged(locked)
    if workspace.run_id is None:
        return Change(replace(workspace, run_id=run_id, updated_at=now), locked.task)
    if workspace.status in _ENDS_POD:
        return finish_stop(locked, epoch, now, work_stopped=work_stopped)
    change = end_open_task(locked, _RUN_ENDED, now, work_stopped=work_stopped)
    placed = replace(change.workspace.in_new_epoch(_RUN_ENDED, now), run_id=run_id)
    return replace(change, workspace=placed)


def register(
    locked: Locked, epoch: int, address: str, lease_seconds: float, now: datetime
) -> Change:
    """Records that the agent of the epoch is up. An agent that misses the reply registers again.

    If the workspace was woken for a task, the reply gives the agent this task.
    """
    workspace = locked.workspace
    if workspace.is_fenced(epoch):
        return unchanged(locked)
    reachable = replace(workspace, agent_address=address)
    if workspace.status is not WorkspaceStatus.PROVISIONING:
        return Change(reachable, locked.task, lease_seconds=lease_seconds)
    is_first = workspace.epoch == 1
    type_ = EventType.WORKSPACE_PROVISIONED if is_first else EventType.WORKSPACE_RESUMED
    status = WorkspaceStatus.IDLE if locked.task is None else WorkspaceStatus.BUSY
    up = replace(reachable, status=status, status_reason="", updated_at=now)
    registered = event.workspace_event(type_, now, epoch=epoch)
    return Change(up, locked.task, (registered,), lease_seconds)


def heartbeat(
    locked: Locked, epoch: int, task_id: str, phase: Phase, lease_seconds: float, now: datetime
) -> Change:
    """Renews the lease. Records which task the agent works on, and the phase of its iteration.

    An agent counts as working on its task only after it has committed the start, because the task's
    limits apply from then on.
    """
    workspace, task = locked.workspace, locked.task
    if workspace.is_fenced(epoch):
        return unchanged(locked)
    is_named = task is None or (task.id == task_id and task.status is TaskStatus.RUNNING)
    if task is not None and is_named:
        task = replace(task, phase=phase)
    unnamed_since = None if is_named else workspace.task_unnamed_since or now
    reported = replace(workspace, task_unnamed_since=unnamed_since)
    return Change(reported, task, lease_seconds=lease_seconds)


def record_breach(locked: Locked, epoch: int, breach: str) -> Change:
    """Records that the agent of the epoch broke a rule. This fences the agent.

    Keeps only the first breach.
    """
    if locked.workspace.is_fenced(epoch):
        return unchanged(locked)
    return Change(replace(locked.workspace, agent_breach=breach), locked.task)


def lose_agent(
    locked: Locked,
    epoch: int,
    reason: str,
    now: datetime,
    *,
    work_stopped: bool,
    overdue: Task | None = None,
) -> Change:
    """Records that the epoch's agent is lost or cannot start.

    Ends its task, fails the workspace and fences the epoch. If the workspace is stopping or being
    deleted, finishes its stop instead. If the agent broke a rule, the breach is the reason. If the
    agent broke no rule but did not interrupt its task in time, the workspace is suspended instead
    of failed, so that the next task wakes it. A suspended workspace keeps its `run_id` until the
    pod is known to have ended.

    For an overdue agent, `overdue` is the task as it was before the controller ended the pod,
    because the end of the task may be committed while the pod ends. Without `overdue`, the force
    deadline of the current task counts: if it has passed, the workspace is suspended, even if the
    agent ended by itself or its lease ran out. So a controller that repeats the step of another
    controller decides the same, although it cannot know who ended the pod.
    """
    workspace = locked.workspace
    reason = workspace.agent_breach or reason
    if workspace.is_over(epoch):
        return unchanged(locked)
    if workspace.status in _ENDS_POD:
        return finish_stop(locked, epoch, now, work_stopped=work_stopped)
    change = end_open_task(locked, reason, now, work_stopped=work_stopped)
    if workspace.agent_breach is None and _is_force_over(overdue or locked.task, now):
        suspended = change.workspace.without_agent(WorkspaceStatus.SUSPENDED, reason, now)
        run_id = None if work_stopped else workspace.run_id
        return replace(change, workspace=replace(suspended, run_id=run_id))
    failed = event.workspace_event(EventType.WORKSPACE_FAILED, now, reason=reason)
    return _without_agent(change, WorkspaceStatus.FAILED, reason, now, failed)


def _is_force_over(task: Task | None, now: datetime) -> bool:
    """Whether the agent's time to interrupt the task is over."""
    cancel = task.cancel if task is not None else None
    force_at = cancel.force_begins_at if cancel is not None else None
    return force_at is not None and force_at + FORCE_MARGIN < now


def finish_stop(locked: Locked, epoch: int, now: datetime, *, work_stopped: bool) -> Change:
    """Records that the pod of a workspace that is stopping or being deleted has ended.

    Ends the task if it is still open.
    """
    workspace = locked.workspace
    if workspace.is_over(epoch) or workspace.status not in _ENDS_POD:
        return unchanged(locked)
    reason = workspace.status_reason
    return _stopped(end_open_task(locked, reason, now, work_stopped=work_stopped), reason, now)


def suspend(locked: Locked, idle_since: datetime, now: datetime) -> Change:
    """Suspends a workspace that has been idle since `idle_since`. This fences its agent.

    `run_id` stays until the pod has ended.
    """
    workspace = locked.workspace
    if workspace.status is not WorkspaceStatus.IDLE or workspace.updated_at > idle_since:
        return unchanged(locked)
    suspended = workspace.without_agent(WorkspaceStatus.SUSPENDED, "", now)
    return Change(replace(suspended, run_id=workspace.run_id), locked.task)


def finish_suspension(locked: Locked, epoch: int) -> Change:
    """Records that the pod of a suspended workspace has ended."""
    workspace = locked.workspace
    if workspace.status is not WorkspaceStatus.SUSPENDED or workspace.epoch != epoch:
        return unchanged(locked)
    return Change(replace(workspace, run_id=None), locked.task)


def _stopped(change: Change, reason: str, now: datetime) -> Change:
    is_deleted = change.workspace.status is WorkspaceStatus.DELETING
    status = WorkspaceStatus.DELETING if is_deleted else WorkspaceStatus.STOPPED
    stopped = event.workspace_event(EventType.WORKSPACE_STOPPED, now, reason=reason)
    return _without_agent(change, status, reason, now, stopped)


def _without_agent(
    change: Change, status: WorkspaceStatus, reason: str, now: datetime, added: NewEvent
) -> Change:
    workspace = change.workspace.without_agent(status, reason, now)
    return replace(change, workspace=workspace, events=(*change.events, added))
