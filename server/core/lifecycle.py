"""Every change of a workspace and its task, as pure functions from what is locked to what is to be
committed.

The store locks a workspace with its current task (a Session), calls one of these, and commits the
Change it returns in the same transaction: workspace, task and events, or nothing. A function that
returns `unchanged` found that there was nothing to do, which makes repeats harmless; one that
raises Failure commits nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from server.core import event
from server.core.errors import Failure
from server.core.event import EventType, NewEvent
from server.core.task import CancelIntent, Phase, Task, TaskStatus, Usage
from server.core.workspace import Workspace, WorkspaceStatus

# How long StopWorkspace lets the iteration in flight go on.
STOP_GRACE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Session:
    """A workspace and the task its agent works on, locked together."""

    workspace: Workspace
    # None when it has no task that has not ended.
    task: Task | None


@dataclass(frozen=True, slots=True)
class Change:
    """What to commit. The task is the session's, a new one, or None when there was none."""

    workspace: Workspace
    task: Task | None
    events: tuple[NewEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a task's end is proposed. The recorded intent decides over it."""

    status: TaskStatus
    reason: str = ""
    result: str = ""
    forced: bool = False
    # Whether everything the task had running is known to have ended.
    work_stopped: bool = True


def unchanged(session: Session) -> Change:
    """Nothing is to be committed."""
    return Change(session.workspace, session.task)


def submit(session: Session, task: Task, submitted_by: str, request_id: str) -> Change:
    """Gives the workspace a task. Raises Failure when it is not up or runs a task already."""
    workspace = session.workspace
    workspace.require_up()
    if session.task is not None:
        message = f"Workspace {workspace.id} is busy with {session.task.id}. Wait for its end, or cancel it."
        raise Failure(
            "workspace_busy",
            message,
            workspace_id=workspace.id,
            task_id=session.task.id,
            status="busy",
        )
    busy = replace(
        workspace,
        status=WorkspaceStatus.BUSY,
        current_task_id=task.id,
        task_unnamed_since=None,
        updated_at=task.created_at,
    )
    return Change(busy, task, (event.task_submitted(task, submitted_by, request_id),))


def deliver(session: Session, task_id: str) -> Change:
    """The agent has acknowledged the task; it may have begun, or even ended it, before the
    acknowledgement arrived.
    """
    task = session.task
    if task is None or task.id != task_id or task.status is not TaskStatus.SUBMITTED:
        return unchanged(session)
    return Change(session.workspace, replace(task, status=TaskStatus.DELIVERED))


def fail_delivery(session: Session, task_id: str, reason: str, now: datetime) -> Change:
    """The agent could not be reached. If it got the task all the same and began, the task goes on."""
    task = session.task
    if task is None or task.id != task_id or task.status is not TaskStatus.SUBMITTED:
        return unchanged(session)
    return _end(session, Ending(status=TaskStatus.DELIVERY_FAILED, reason=reason), now)


def request_cancel(session: Session, intent: CancelIntent) -> Change:
    """Records the intent to cancel the current task. The first intent stays, but for the earliest
    `force_at` and who asked for it.

    CancelTask does the same in one statement of SQL (migrations/0003); the store's contract suite
    holds both against each other.
    """
    task = session.task
    if task is None:
        return unchanged(session)
    if task.cancel is None:
        return Change(
            session.workspace,
            replace(task, cancel=intent),
            (event.task_cancel_requested(task, intent),),
        )
    if intent.force_at is None or (
        task.cancel.force_at is not None and task.cancel.force_at <= intent.force_at
    ):
        return unchanged(session)
    sooner = replace(
        task.cancel, force_at=intent.force_at, force_requested_by=intent.force_requested_by
    )
    return Change(session.workspace, replace(task, cancel=sooner))


def request_stop(session: Session, intent: CancelIntent) -> Change:
    """Asks for the agent's end: a running task is cancelled first, its iteration broken off after
    the grace period.
    """
    workspace = session.workspace
    if workspace.status in (WorkspaceStatus.STOPPING, WorkspaceStatus.STOPPED):
        return unchanged(session)
    if workspace.status is WorkspaceStatus.FAILED:
        workspace.require_up()
    now = intent.requested_at
    forced = replace(
        intent,
        force_at=now + timedelta(seconds=STOP_GRACE_SECONDS),
        force_requested_by=intent.requested_by,
    )
    cancelled = request_cancel(session, forced)
    stopping = replace(
        workspace, status=WorkspaceStatus.STOPPING, status_reason=intent.reason, updated_at=now
    )
    return Change(stopping, cancelled.task, cancelled.events)


def resume(session: Session, now: datetime) -> Change:
    """Asks for a new agent, in a new epoch."""
    workspace = session.workspace
    if workspace.is_up or workspace.status is WorkspaceStatus.PROVISIONING:
        return unchanged(session)
    if workspace.status is WorkspaceStatus.STOPPING:
        message = f"Workspace {workspace.id} is still stopping. Resume it once it has stopped."
        raise Failure("invalid_state", message, workspace_id=workspace.id, status="stopping")
    return Change(_new_epoch(workspace, "", now), session.task)


def register(
    session: Session, epoch: int, address: str, lease_seconds: float, now: datetime
) -> Change:
    """The agent of the epoch is up. It may say so again, after its first call's reply was lost."""
    workspace = session.workspace
    if is_fenced(workspace, epoch):
        return unchanged(session)
    leased = replace(
        workspace, agent_address=address, lease_expires_at=now + timedelta(seconds=lease_seconds)
    )
    if workspace.status is not WorkspaceStatus.PROVISIONING:
        return Change(leased, session.task)
    first = workspace.epoch == 1
    registered = event.workspace_event(
        EventType.WORKSPACE_PROVISIONED if first else EventType.WORKSPACE_RESUMED, now, epoch=epoch
    )
    return Change(
        replace(leased, status=WorkspaceStatus.IDLE, status_reason="", updated_at=now),
        session.task,
        (registered,),
    )


def heartbeat(
    session: Session, epoch: int, task_id: str, phase: Phase, lease_seconds: float, now: datetime
) -> Change:
    """Renews the lease, and records which task the agent works on and in which phase of its
    iteration it is.
    """
    workspace, task = session.workspace, session.task
    if is_fenced(workspace, epoch):
        return unchanged(session)
    is_named = task is None or task.id == task_id
    if task is not None and is_named and task.status is TaskStatus.RUNNING:
        task = replace(task, phase=phase)
    renewed = replace(
        workspace,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        task_unnamed_since=None if is_named else workspace.task_unnamed_since or now,
    )
    return Change(renewed, task)


def is_fenced(workspace: Workspace, epoch: int) -> bool:
    """Whether an agent of this epoch has no business here any more."""
    return epoch != workspace.epoch or workspace.status in (
        WorkspaceStatus.STOPPED,
        WorkspaceStatus.FAILED,
    )


@dataclass(frozen=True, slots=True)
class Started:
    """Committed by the agent: it begins the task."""


@dataclass(frozen=True, slots=True)
class Iterated:
    """Committed by the agent: one iteration is over. The payload is IterationCompleted's; `number`
    counts from 1.
    """

    number: int
    payload: Mapping[str, Any]


AgentEvent = Started | Iterated | Ending


def commit(
    session: Session, epoch: int, task_id: str, events: Sequence[AgentEvent], now: datetime
) -> Change:
    """What the agent says has happened. What is committed already, or comes for a task that has
    ended, changes nothing.
    """
    change = unchanged(session)
    for happened in events:
        workspace, task = change.workspace, change.task
        if (
            task is None
            or task.id != task_id
            or task.status.is_terminal
            or is_fenced(workspace, epoch)
        ):
            break
        step = _commit_one(Session(workspace, task), task, happened, now)
        change = Change(step.workspace, step.task, change.events + step.events)
    return change


def _commit_one(session: Session, task: Task, happened: AgentEvent, now: datetime) -> Change:
    match happened:
        case Started():
            if task.status is TaskStatus.RUNNING:
                return unchanged(session)
            running = replace(task, status=TaskStatus.RUNNING, started_at=now)
            return Change(
                session.workspace,
                running,
                (event.task_started(running, session.workspace.epoch, now),),
            )
        case Iterated(number=number, payload=payload):
            if number <= task.iterations:
                return unchanged(session)
            if number != task.iterations + 1:
                raise Failure(
                    "invalid_state",
                    f"Task {task.id} has {task.iterations} iterations; {number} cannot follow.",
                )
            iterated = _count_iteration(task, payload)
            return Change(
                session.workspace, iterated, (event.iteration_completed(iterated, payload, now),)
            )
        case Ending():
            return _end(session, happened, now)


def _count_iteration(task: Task, payload: Mapping[str, Any]) -> Task:
    model_call, tool_call = payload["model_call"], payload.get("tool_call")
    usage = Usage(
        input_tokens=task.usage.input_tokens + int(model_call.get("input_tokens", 0)),
        output_tokens=task.usage.output_tokens + int(model_call.get("output_tokens", 0)),
        model_calls=task.usage.model_calls + 1,
        tool_calls=task.usage.tool_calls + (tool_call is not None),
    )
    output = tool_call["result"].get("output", "") if tool_call else ""
    so_far = model_call.get("content") or output or task.result
    return replace(
        task, iterations=task.iterations + 1, usage=usage, result=so_far, phase=Phase.NONE
    )


def lose_agent(
    session: Session, epoch: int, reason: str, now: datetime, *, work_stopped: bool
) -> Change:
    """The epoch's agent is gone or cannot start: its task ends, the workspace has failed, and the
    epoch is fenced.
    """
    workspace = session.workspace
    if is_fenced(workspace, epoch):
        return unchanged(session)
    if workspace.status is WorkspaceStatus.STOPPING:
        return finish_stop(session, epoch, now, work_stopped=work_stopped)
    change = _end_open_task(session, reason, now, work_stopped=work_stopped)
    failed = event.workspace_event(EventType.WORKSPACE_FAILED, now, reason=reason)
    return _without_agent(change, WorkspaceStatus.FAILED, reason, now, failed)


def finish_stop(session: Session, epoch: int, now: datetime, *, work_stopped: bool) -> Change:
    """The pod of a stopping workspace has ended. A task that was still open then ends with it."""
    workspace = session.workspace
    if is_fenced(workspace, epoch) or workspace.status is not WorkspaceStatus.STOPPING:
        return unchanged(session)
    change = _end_open_task(session, workspace.status_reason, now, work_stopped=work_stopped)
    stopped = event.workspace_event(
        EventType.WORKSPACE_STOPPED, now, reason=workspace.status_reason
    )
    return _without_agent(change, WorkspaceStatus.STOPPED, workspace.status_reason, now, stopped)


def place(session: Session, epoch: int, host: str, now: datetime, *, work_stopped: bool) -> Change:
    """A host takes it on itself to start the epoch's pod. What an earlier run of the host had is
    gone and gets a new epoch.
    """
    workspace = session.workspace
    if is_fenced(workspace, epoch) or workspace.host == host:
        return unchanged(session)
    if workspace.host is None:
        return Change(replace(workspace, host=host, updated_at=now), session.task)
    if workspace.status is WorkspaceStatus.STOPPING:
        return finish_stop(session, epoch, now, work_stopped=work_stopped)
    change = _end_open_task(session, "the host was restarted", now, work_stopped=work_stopped)
    return Change(
        replace(_new_epoch(change.workspace, "the host was restarted", now), host=host),
        change.task,
        change.events,
    )


def _end(session: Session, ending: Ending, now: datetime) -> Change:
    """The one way in which a task ends: a recorded intent makes it `cancelled`, whatever was
    proposed.
    """
    workspace, task = session.workspace, session.task
    assert task is not None
    status, reason = ending.status, ending.reason
    if task.cancel is not None:
        status, reason = TaskStatus.CANCELLED, reason or task.cancel.reason
    elif status is TaskStatus.CANCELLED:
        # Nobody is told of a cancellation that nobody asked for.
        status, reason = (
            TaskStatus.FAILED,
            reason or "its agent ended it, and no cancellation was recorded",
        )
    ended = replace(
        task,
        status=status,
        phase=Phase.NONE,
        completed_at=now,
        reason=reason,
        result=ending.result or task.result,
        forced=ending.forced,
    )
    idle = WorkspaceStatus.IDLE if workspace.status is WorkspaceStatus.BUSY else workspace.status
    without_task = replace(
        workspace, status=idle, current_task_id=None, task_unnamed_since=None, updated_at=now
    )
    return Change(
        without_task, ended, (event.task_completed(ended, now, work_stopped=ending.work_stopped),)
    )


def _end_open_task(session: Session, reason: str, now: datetime, *, work_stopped: bool) -> Change:
    """Ends the task of a pod that has ended. The end is forced if the `force_at` of its
    cancellation has passed.
    """
    if session.task is None:
        return unchanged(session)
    force_at = session.task.cancel.force_at if session.task.cancel is not None else None
    forced = force_at is not None and force_at <= now
    ending = Ending(
        status=TaskStatus.FAILED, reason=reason, forced=forced, work_stopped=work_stopped
    )
    return _end(session, ending, now)


def _without_agent(
    change: Change, status: WorkspaceStatus, reason: str, now: datetime, happened: NewEvent
) -> Change:
    return Change(
        _bare(change.workspace, status, reason, now), change.task, (*change.events, happened)
    )


def _new_epoch(workspace: Workspace, reason: str, now: datetime) -> Workspace:
    bare = _bare(workspace, WorkspaceStatus.PROVISIONING, reason, now)
    return replace(bare, epoch=workspace.epoch + 1, current_task_id=None)


def _bare(workspace: Workspace, status: WorkspaceStatus, reason: str, now: datetime) -> Workspace:
    """Without an agent, and with no host on which one would be."""
    without = replace(
        workspace, agent_address=None, lease_expires_at=None, task_unnamed_since=None, host=None
    )
    return replace(without, status=status, status_reason=reason, updated_at=now)
