"""Cancellations of a task, of a tree of tasks, and of the tasks that match a filter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import cast

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import FirstCall, Locked
from evershell.core.event import AuditEntry, Origin
from evershell.core.ports import (
    UNDELIVERED,
    CancellationOutcome,
    CancellationRefusal,
    MatchedTask,
    MatchedTasks,
    RecordedCancellation,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.task_filter import AllTasks, TaskSelection
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.memory.state import State, covers

# In these statuses of a workspace a call records no intent: either there is no open task, or the
# change to the status has already recorded an intent for the open task.
_ENDING = (
    WorkspaceStatus.STOPPING,
    WorkspaceStatus.STOPPED,
    WorkspaceStatus.FAILED,
    WorkspaceStatus.DELETING,
)


def cancellation_outcome(
    permission: Permission, workspace: Workspace | None, task: Task | None, *, is_named: bool
) -> CancellationOutcome:
    """Returns the same outcome as store/functions/cancellation_outcome.sql."""
    if workspace is None:
        return "workspace_not_found"
    if not permission.covers(workspace):
        return "permission_denied"
    if is_named and task is None:
        return "task_not_found"
    if task is not None and task.status.is_terminal:
        return "already_finished"
    is_provisioning = workspace.status is WorkspaceStatus.PROVISIONING
    if workspace.status in _ENDING or (is_provisioning and task is None):
        return cast(CancellationRefusal, workspace.refusal().slug)
    if task is None:
        return "no_active_task"
    return "accepted" if task.cancel is None else "already_requested"


class Cancellations(State):
    """Records cancellations."""

    async def record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        workspace = self.workspaces.get(workspace_id)
        task = None
        if workspace is not None and workspace.org_id != permission.caller.org_id:
            workspace = None
        if workspace is not None:
            task = self._task_of(workspace, task_id or workspace.current_task_id)
        outcome = cancellation_outcome(permission, workspace, task, is_named=task_id is not None)
        self._audit(audit, outcome, None if task is None else task.id)
        if workspace is None or task is None or outcome not in ("accepted", "already_requested"):
            return RecordedCancellation(outcome, workspace, task)
        workspace, task = self._request(workspace, task, intent, trace_id)
        return RecordedCancellation(outcome, workspace, task)

    def _audit(self, audit: AuditEntry | None, outcome: str, task_id: str | None) -> None:
        """Stores the entry, if there is one, with the outcome and the id of the task if known."""
        if audit is not None:
            self._store_audit_entry(
                replace(audit, outcome=outcome, task_id=task_id or audit.task_id)
            )

    def _request(
        self, workspace: Workspace, task: Task, intent: CancelIntent, trace_id: str
    ) -> tuple[Workspace, Task]:
        """Records the intent, or the earlier force deadline. Publishes the change."""
        locked = Locked(workspace, task)
        requested = task_lifecycle.request_cancel(locked, intent)
        change = self._commit(locked, requested.caused_by(Origin(intent.request_id, trace_id)))
        assert change.task is not None
        if not change.events and change.task != task:
            # Only an earlier `force_at` was stored, which `_commit` does not publish.
            self._publish(change.workspace)
        return change.workspace, change.task

    async def cancel_tree(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        workspace = self.workspaces.get(workspace_id)
        named = task_id or (None if workspace is None else workspace.current_task_id)
        is_here = workspace is not None and self._task_of(workspace, named) is not None
        descendants = [
            each
            for each in self.tasks.values()
            if is_here and named in each.ancestor_ids and not each.status.is_terminal
        ]
        for each in descendants:
            at = self.workspaces[each.workspace_id]
            if at.org_id == permission.caller.org_id and not permission.covers(at):
                self._audit(audit, "permission_denied", named)
                return RecordedCancellation("permission_denied", at, None)
        recorded = await self.record_cancellation(
            permission, workspace_id, task_id, intent, trace_id, audit
        )
        if recorded.outcome not in ("accepted", "already_requested", "already_finished"):
            return recorded
        ids = [each.id for each in descendants]
        outcomes = await self.cancel_tasks(permission, ids, intent, trace_id)
        return replace(recorded, descendants_cancelled=sum(outcomes.values()))

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        found = [
            MatchedTask(at.id, task.id, _accepts(at) and would_change(task, force_at))
            for at, task in self._open(permission)
            if _matches(wanted, at, task)
        ]
        found.sort(key=lambda each: (not each.is_pending, each.task_id))
        pending = sum(each.is_pending for each in found)
        return MatchedTasks(len(found), pending, found[:limit])

    async def cancel_tasks(
        self,
        permission: Permission,
        task_ids: Sequence[str],
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
        *,
        wait: bool = False,
        first_call: Callable[[Mapping[str, bool]], FirstCall] | None = None,
    ) -> Mapping[str, bool]:
        outcomes = dict[str, bool]()
        if first_call is not None:
            self._store_key(first_call(outcomes))
        for at, task in self._open(permission):
            if task.id in task_ids and _accepts(at):
                outcomes[task.id] = task.cancel is None
                self._request(at, task, intent, trace_id)
        self._store_audit_entry(audit)
        if first_call is not None:
            call = first_call(outcomes)
            self.first_calls[call.org_id, call.key] = call
        if outcomes:
            self.publish(UNDELIVERED, watched=False, reconcile=True)
        return outcomes

    def _open(self, permission: Permission) -> list[tuple[Workspace, Task]]:
        """Each workspace that has a current task and that the permission covers, with the task."""
        return [
            (at, self.tasks[at.current_task_id])
            for at in self.workspaces.values()
            if covers(permission, at) and at.current_task_id is not None
        ]


def _accepts(at: Workspace) -> bool:
    """Whether an intent can be recorded for the task of a workspace in this status."""
    return at.status not in _ENDING


def would_change(task: Task, force_at: datetime | None) -> bool:
    """Whether a cancellation with this deadline would change the task."""
    return task.cancel is None or task.cancel.is_forced_earlier(force_at)


def _matches(wanted: TaskSelection, at: Workspace, task: Task) -> bool:
    if isinstance(wanted, AllTasks):
        return True
    return (
        (wanted.task_ids is None or task.id in wanted.task_ids)
        and (wanted.workspace_ids is None or at.id in wanted.workspace_ids)
        and wanted.created_by_user_id in (None, at.created_by_user_id)
        and wanted.submitted_by in (None, task.submitted_by)
        and (wanted.submitted_before is None or task.created_at < wanted.submitted_before)
        and (wanted.metadata is None or wanted.metadata.items() <= task.metadata.items())
    )
