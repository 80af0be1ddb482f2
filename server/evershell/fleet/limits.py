"""Cancels tasks and trees that have reached a limit, and ends cancelled tasks that no agent has.

Each commit of an agent also checks the limits of its task. The functions here cover the tasks whose
agents commit nothing, and the trees, whose limits include the usage of all descendants.
"""

from collections.abc import Callable
from datetime import datetime

import structlog

from evershell.core import task_lifecycle, task_limits
from evershell.core.change import Change, Locked
from evershell.core.due import Due
from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock, Store
from evershell.core.task import Task
from evershell.core.workspace import Workspace

log = structlog.get_logger()


class Limits:
    """Applies limits, and ends cancelled tasks that no agent has."""

    def __init__(
        self, store: Store, clock: Clock, signal: Callable[[Workspace, Task], None]
    ) -> None:
        """`signal` is called with each task that a limit has cancelled, to signal its agent."""
        self._store = store
        self._clock = clock
        self._signal = signal

    async def apply(self, due: Due) -> None:
        """Cancels the task if it has reached a limit. Raises UnavailableError."""
        change = await self._change(due, task_lifecycle.apply_limits, "limit_reached")
        if change is not None and change.task is not None and change.task.cancel is not None:
            self._signal(change.workspace, change.task)

    async def cancel_tree(self, due: Due) -> None:
        """Cancels the tree if it has reached a limit, and signals the root.

        The store publishes that the descendants must be signalled.
        """
        root, workspace = due.task, due.workspace
        reached = None if root is None else task_limits.reached(root, self._clock())
        if root is None or reached is None:
            return
        permission = task_limits.service_permission(workspace.org_id)
        try:
            recorded = await self._store.cancel_tree(
                permission, workspace.id, root.id, reached.intent
            )
        except UnavailableError:
            # For example, a workspace with a task of the tree is locked. A later scan finds the
            # tree again.
            log.warning("limit_of_tree_not_applied", task_id=root.id)
            return
        if recorded.outcome in ("accepted", "already_requested"):
            assert recorded.workspace is not None
            assert recorded.task is not None
            self._signal(recorded.workspace, recorded.task)
        count = recorded.recorded + recorded.descendants_cancelled
        reason = reached.intent.reason
        log.info("limit_of_tree_reached", task_id=root.id, reason=reason, cancelled=count)

    async def end_unstarted(self, due: Due) -> None:
        """Ends a cancelled task whose workspace is being woken. Raises UnavailableError."""
        await self._change(due, task_lifecycle.end_unstarted, "unstarted_task_ended")

    async def _change(
        self, due: Due, decide: Callable[[Locked, datetime], Change], event: str
    ) -> Change | None:
        change = await self._store.transition(
            due.workspace.id, lambda locked: decide(locked, self._clock())
        )
        if change is not None and change.events and change.task is not None:
            log.info(event, workspace_id=due.workspace.id, task_id=change.task.id)
        return change
