"""The invariants of the limits of a task. Each function raises AssertionError."""

from datetime import datetime, timedelta

from evershell.core.task import Task, TaskStatus
from evershell.core.task_limits import CREDENTIAL_KIND, REQUESTER
from tests.faults.invariants.view import View

# Longer than the pause between two scans of the controller.
_SCAN = timedelta(seconds=1.5)


def duration_ends_at(task: Task) -> datetime | None:
    """When the task reaches the limit of its duration, if it has one and has started."""
    if task.limits.max_duration_seconds is None or task.started_at is None:
        return None
    return task.started_at + timedelta(seconds=task.limits.max_duration_seconds)


def limits_decide_the_end(view: View) -> None:
    """A task that has reached a limit is cancelled, and never ends in another way."""
    for task in view.tasks.values():
        most = task.limits.max_total_tokens
        is_used = most is not None and _tokens(task) >= most
        assert not is_used or task.cancel is not None, task
        due = duration_ends_at(task)
        is_late = due is not None and task.completed_at is not None and due <= task.completed_at
        assert not is_late or task.status is TaskStatus.CANCELLED, task


def limits_are_named(view: View) -> None:
    """A cancellation by the service names a limit that the task had reached by then."""
    for task in view.tasks.values():
        cancel, limits = task.cancel, task.limits
        if cancel is None or cancel.requested_by != REQUESTER:
            continue
        due = duration_ends_at(task)
        named = set()
        if due is not None and due <= cancel.requested_at:
            named.add(f"max_duration reached: {limits.max_duration_seconds:.12g} s")
        if limits.max_total_tokens is not None:
            named |= {
                f"max_total_tokens reached: {tokens} of {limits.max_total_tokens} tokens"
                for tokens in range(limits.max_total_tokens, _tokens(task) + 1)
            }
        assert cancel.reason in named, (task, named)
        assert cancel.credential_kind == CREDENTIAL_KIND, task


def _tokens(task: Task) -> int:
    return task.usage.input_tokens + task.usage.output_tokens


def limits_are_recorded_in_time(view: View) -> None:
    """A controller records a duration that has ended, even one that ended before its term."""
    world, now = view.world, view.world.clock()
    for task in view.tasks.values():
        due = duration_ends_at(task)
        if task.cancel is not None or task.status.is_terminal or due is None:
            continue
        if world.leading_since is None:
            continue
        since = [due, world.leading_since, world.store.last_hiccup_at or due]
        assert now <= max(since) + _SCAN, ("a limit is forgotten", task)
