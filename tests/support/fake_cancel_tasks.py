"""The part of the store in memory that finds and cancels many tasks."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Locked
from evershell.core.event import AuditEntry, Origin
from evershell.core.ports import UNDELIVERED, MatchedTask, MatchedTasks
from evershell.core.task import CancelIntent, Task
from evershell.core.task_filter import AllTasks, TaskSelection
from evershell.core.workspace import Workspace
from tests.support.fake_rows import FakeRows


class FakeCancelTasks(FakeRows):
    """Implements Store.match_tasks and Store.cancel_tasks for FakeStore."""

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        self._answer()
        found = [
            MatchedTask(at.id, task.id, at.is_up and _would_change(task, force_at))
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
    ) -> Mapping[str, bool]:
        self._answer()
        outcomes = {}
        for at, task in self._open(permission):
            if task.id not in task_ids or not at.is_up:
                continue
            locked = Locked(at, task)
            change = task_lifecycle.request_cancel(locked, intent)
            self._commit(locked, change.caused_by(Origin(intent.request_id, trace_id)))
            outcomes[task.id] = bool(change.events)
            if not change.events:
                self.publish(at.id, watched=False, reconcile=False)
        if audit is not None:
            self._audit.add(audit)
        if outcomes:
            self.publish(UNDELIVERED, watched=False, reconcile=True)
        return outcomes

    def _open(self, permission: Permission) -> list[tuple[Workspace, Task]]:
        return [
            (at, self._tasks[at.current_task_id])
            for at in list(self._workspaces.values())
            if at.org_id == permission.caller.org_id
            and permission.covers(at)
            and at.current_task_id is not None
        ]


def _would_change(task: Task, force_at: datetime | None) -> bool:
    if task.cancel is None:
        return True
    recorded = task.cancel.force_at
    return force_at is not None and (recorded is None or force_at < recorded)


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
