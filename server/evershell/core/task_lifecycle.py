"""The functions that decide every change to a task. See change.py."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from evershell.core import agent_rules, event, task_limits
from evershell.core.change import Change, Locked, unchanged
from evershell.core.errors import Failure
from evershell.core.prices import PriceList
from evershell.core.task import (
    AgentEvent,
    CancelIntent,
    IterationCompleted,
    IterationReported,
    OpenIteration,
    Phase,
    Task,
    TaskEnded,
    TaskStarted,
    TaskStatus,
    Usage,
)
from evershell.core.workspace import WorkspaceStatus

_NO_PRICES = PriceList()


def submit(locked: Locked, task: Task, submitted_by: str) -> Change:
    """Gives the workspace a task. Wakes a suspended workspace.

    Raises Failure if the workspace is not up or is busy. A workspace that was woken for another
    task counts as busy.
    """
    workspace = locked.workspace
    is_suspended = workspace.status is WorkspaceStatus.SUSPENDED
    if not is_suspended and not workspace.is_waking:
        workspace.require_up()
    if locked.task is not None:
        message = (
            f"Workspace {workspace.id} is busy with {locked.task.id}. "
            "Wait for its end, or cancel it."
        )
        raise Failure(
            "workspace_busy",
            message,
            workspace_id=workspace.id,
            task_id=locked.task.id,
            status=str(workspace.status),
        )
    if is_suspended:
        workspace = workspace.in_new_epoch("", task.created_at)
    else:
        workspace = replace(workspace, status=WorkspaceStatus.BUSY, updated_at=task.created_at)
    given = replace(workspace, current_task_id=task.id, task_unnamed_since=None)
    return Change(given, task, (event.task_submitted(task, submitted_by),))


def deliver(locked: Locked, task_id: str) -> Change:
    """Records that the agent has acknowledged the task.

    The agent may have started or even ended the task before its acknowledgement arrived.
    """
    task = locked.task
    if task is None or task.id != task_id or task.status is not TaskStatus.SUBMITTED:
        return unchanged(locked)
    return Change(locked.workspace, replace(task, status=TaskStatus.DELIVERED))


def fail_delivery(locked: Locked, task_id: str, reason: str, now: datetime) -> Change:
    """Ends a task that could not be delivered, unless the agent has started it."""
    task = locked.task
    if task is None or task.id != task_id or task.status is not TaskStatus.SUBMITTED:
        return unchanged(locked)
    return _end(locked, task, TaskEnded(status=TaskStatus.DELIVERY_FAILED, reason=reason), now)


def end_unstarted(locked: Locked, now: datetime) -> Change:
    """Ends a cancelled task that has not begun because its agent has not registered."""
    task = locked.task
    if not locked.workspace.is_waking or task is None or task.cancel is None:
        return unchanged(locked)
    return _end(locked, task, TaskEnded(status=TaskStatus.CANCELLED), now)


def request_cancel(locked: Locked, intent: CancelIntent) -> Change:
    """Records the intent to cancel the current task.

    An intent that is already recorded stays, except that an earlier `force_at` replaces its
    `force_at` and `force_requested_by`. CancelTask does the same in one SQL statement
    (store/functions). The contract suite of the store compares the two.
    """
    task = locked.task
    if task is None:
        return unchanged(locked)
    if task.cancel is None:
        return Change(
            locked.workspace,
            replace(task, cancel=intent),
            (event.task_cancel_requested(task, intent),),
        )
    if not task.cancel.is_forced_earlier(intent.force_at):
        return unchanged(locked)
    sooner = replace(
        task.cancel, force_at=intent.force_at, force_requested_by=intent.force_requested_by
    )
    return Change(locked.workspace, replace(task, cancel=sooner))


def apply_limits(locked: Locked, now: datetime) -> Change:
    """Cancels the current task if it has reached a limit."""
    task = locked.task
    if task is None or task.status.is_terminal:
        return unchanged(locked)
    reached = task_limits.reached(task, now)
    return unchanged(locked) if reached is None else _cancel_at(locked, reached)


def _cancel_at(locked: Locked, reached: task_limits.Reached) -> Change:
    change = request_cancel(locked, reached.intent)
    # Without events, the task was cancelled before. Then the limit is not the reason for the
    # cancellation: it can only make the force deadline earlier.
    return replace(change, limit=reached.limit) if change.events else change


def commit(
    locked: Locked,
    epoch: int,
    task_id: str,
    events: Sequence[AgentEvent],
    now: datetime,
    prices: PriceList = _NO_PRICES,
) -> Change:
    """Commits what the agent of the epoch reports about its task. `prices` has the models' prices.

    Events have no effect if they are committed already, if their task has ended, or if the agent is
    fenced. The limits of the task are applied before each event and after the last one. Raises
    Failure invalid_state for an iteration that is out of order. Raises BreachError if the agent
    broke a rule.
    """
    change = unchanged(locked)
    for agent_event in (*events, None):
        if not _is_current(change, epoch, task_id):
            break
        limited = apply_limits(Locked(change.workspace, change.task), now)
        change = _followed_by(change, limited)
        if agent_event is not None and change.task is not None:
            locked = Locked(change.workspace, change.task)
            change = _followed_by(
                change, _commit_one(locked, change.task, agent_event, now, prices)
            )
    return change


def _is_current(change: Change, epoch: int, task_id: str) -> bool:
    """Whether this is the open task, and the agent of the epoch is not fenced."""
    workspace, task = change.workspace, change.task
    return (
        task is not None
        and task.id == task_id
        and not task.status.is_terminal
        and not workspace.is_fenced(epoch)
    )


def _followed_by(first: Change, second: Change) -> Change:
    events, limit = first.events + second.events, first.limit or second.limit
    return Change(second.workspace, second.task, events, limit=limit)


def _commit_one(
    locked: Locked, task: Task, agent_event: AgentEvent, now: datetime, prices: PriceList
) -> Change:
    workspace = locked.workspace
    match agent_event:
        case TaskStarted():
            if task.status is TaskStatus.RUNNING:
                return unchanged(locked)
            running = replace(task, status=TaskStatus.RUNNING, started_at=now)
            return Change(workspace, running, (event.task_started(running, workspace.epoch, now),))
        case IterationCompleted(number=number, payload=payload):
            if not _is_next(task, agent_event):
                return unchanged(locked)
            usage = _usage_of(payload["model_call"], len(agent_event.tool_calls), now, prices)
            counted = _count_iteration(task, agent_event, usage)
            completed = event.iteration_completed(counted, payload, now)
            return Change(workspace, counted, (completed, *_warnings(task, counted, now)))
        case IterationReported(number=number, payload=payload):
            if not _is_next(task, agent_event):
                return unchanged(locked)
            calls = payload.get("started_calls", [])
            usage = _usage_of(payload["model_call"], len(calls), now, prices)
            opened = OpenIteration(number=number, usage=usage, started_calls=calls)
            if task.open_iteration is not None:
                opened = task.open_iteration.with_report(opened)
            reported = replace(task, open_iteration=opened)
            return Change(workspace, reported, tuple(_warnings(task, reported, now)))
        case TaskEnded():
            return _end(locked, task, agent_event, now)


def _is_next(task: Task, iteration: IterationCompleted | IterationReported) -> bool:
    """Whether the iteration is the next one; False if it is committed already.

    Raises Failure invalid_state, and BreachError.
    """
    if iteration.number <= task.iterations:
        return False
    if iteration.number != task.iterations + 1:
        message = (
            f"Task {task.id} has {task.iterations} iterations; {iteration.number} cannot follow."
        )
        raise Failure("invalid_state", message)
    agent_rules.check_next(task, iteration)
    return True


def _usage_of(
    model_call: Mapping[str, Any], tool_calls: int, now: datetime, prices: PriceList
) -> Usage:
    return Usage(
        input_tokens=int(model_call.get("input_tokens", 0)),
        output_tokens=int(model_call.get("output_tokens", 0)),
        model_calls=1,
        tool_calls=tool_calls,
        cost_nanos=prices.cost(model_call, now),
    )


def _warnings(before: Task, after: Task, now: datetime) -> Iterator[event.NewEvent]:
    for budget in task_limits.approached(before, after):
        if before.cancel is None:
            yield event.task_limit_approached(after, budget, now)


def _count_iteration(task: Task, iteration: IterationCompleted, usage: Usage) -> Task:
    if task.open_iteration is not None:
        # Reported usage stays counted, even if the committed iteration has less.
        usage = usage.at_least(task.open_iteration.usage)
    outputs = [call["result"].get("output", "") for call in iteration.tool_calls]
    content = iteration.payload["model_call"].get("content")
    result = content or next(filter(None, reversed(outputs)), task.result)
    return replace(
        task,
        iterations=task.iterations + 1,
        usage=task.usage + usage,
        open_iteration=None,
        committed_bytes=task.committed_bytes + iteration.size_bytes,
        result=result,
        phase=Phase.NONE,
    )


def end_open_task(locked: Locked, reason: str, now: datetime, *, work_stopped: bool) -> Change:
    """Ends the current task, if there is one, because its pod has ended.

    The end is forced if the `force_at` of its cancellation has passed. Limits that the task has
    reached are applied first. A task whose agent never registered ends `delivery_failed`, unless
    it was cancelled.
    """
    limited = apply_limits(locked, now)
    task = limited.task
    if task is None:
        return unchanged(locked)
    force_at = task.cancel.force_at if task.cancel is not None else None
    forced = force_at is not None and force_at <= now
    was_waking = locked.workspace.is_waking
    status = TaskStatus.DELIVERY_FAILED if was_waking else TaskStatus.FAILED
    ended = TaskEnded(
        status=status,
        reason=reason,
        forced=forced,
        work_stopped=work_stopped,
        iteration_lost=task.phase is not Phase.NONE,
    )
    return _followed_by(limited, _end(Locked(limited.workspace, task), task, ended, now))


def _end(locked: Locked, task: Task, proposed: TaskEnded, now: datetime) -> Change:
    """Ends the task. In the core, only this function ends tasks.

    With a recorded intent, the task becomes `cancelled`, whatever status is proposed. Without an
    intent, the task never becomes `cancelled`. The end is forced only if the intent has a force
    deadline. The reported usage of an uncommitted iteration counts.
    """
    workspace = locked.workspace
    may_be_forced = task.cancel is not None and task.cancel.force_at is not None
    status, reason = proposed.status, proposed.reason
    if task.cancel is not None:
        status, reason = TaskStatus.CANCELLED, reason or task.cancel.reason
    elif status is TaskStatus.CANCELLED:
        status = TaskStatus.FAILED
        reason = reason or "its agent ended it, and no cancellation was recorded"
    ended = replace(
        task,
        status=status,
        phase=Phase.NONE,
        completed_at=now,
        reason=reason,
        result=proposed.result or task.result,
        forced=proposed.forced and may_be_forced,
        iteration_lost=proposed.iteration_lost or task.open_iteration is not None,
        usage=task.used,
        open_iteration=None,
    )
    idle = WorkspaceStatus.IDLE if workspace.status is WorkspaceStatus.BUSY else workspace.status
    without_task = replace(
        workspace, status=idle, current_task_id=None, task_unnamed_since=None, updated_at=now
    )
    completed = event.task_completed(ended, now, work_stopped=proposed.work_stopped)
    return Change(without_task, ended, (completed,))
