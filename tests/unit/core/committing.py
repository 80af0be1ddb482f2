"""Commits of an agent to its task, and the state after them."""

from datetime import timedelta

from evershell.core import task_lifecycle
from evershell.core.change import Change, Locked
from evershell.core.task import AgentEvent
from tests.support.world import NOW

LATER = NOW + timedelta(minutes=1)


def after(change: Change) -> Locked:
    """Returns the locked state after the change is committed, without the task if it has ended."""
    open_task = (
        change.task if change.task is not None and not change.task.status.is_terminal else None
    )
    return Locked(change.workspace, open_task)


def types(change: Change) -> list[str]:
    return [str(event.type) for event in change.events]


def commit(
    locked: Locked, *events: AgentEvent, epoch: int = 1, task_id: str | None = None
) -> Change:
    assert locked.task is not None
    return task_lifecycle.commit(locked, epoch, task_id or locked.task.id, events, LATER)
