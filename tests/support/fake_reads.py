"""The part of the store in memory that reads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Locked
from evershell.core.event import AuditEntry, AuditFilter, Event
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fake_rows import FakeRows

_Listed = TypeVar("_Listed", Workspace, Task)
_WANTED = (
    WorkspaceStatus.PROVISIONING,
    WorkspaceStatus.IDLE,
    WorkspaceStatus.BUSY,
    WorkspaceStatus.STOPPING,
)


class FakeReads(FakeRows):
    """Implements the reading methods of Store for FakeStore."""

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        self._answer()
        found = self._workspaces.get(workspace_id)
        return None if found is None or org_id not in (None, found.org_id) else found

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Sequence[Workspace]:
        self._answer()
        org_id = permission.caller.org_id
        found = [
            each
            for each in self._workspaces.values()
            if each.org_id == org_id and permission.covers(each)
        ]
        return _page(found, before_id, limit)

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        self._answer()
        workspace = self._workspaces.get(workspace_id)
        return None if workspace is None else self._task_of(workspace, task_id)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        workspace = await self.get_workspace(workspace_id, org_id)
        return workspace, None if workspace is None else self._task_of(workspace, task_id)

    async def list_tasks(
        self, workspace_id: str, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        self._answer()
        return _page(
            [task for task in self._tasks.values() if task.workspace_id == workspace_id],
            before_id,
            limit,
        )

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        self._answer()
        return [event for event in self._events[workspace_id] if event.seq > after_seq][:limit]

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        self._answer()
        return self._audit.list(self._workspaces, permission, wanted, before_id)[:limit]

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        self._answer()
        return [each for each in self._wanted() if each.id > after_id][:limit]

    async def list_unsettled(self) -> Sequence[Workspace]:
        self._answer()
        moving = (WorkspaceStatus.PROVISIONING, WorkspaceStatus.STOPPING)
        return [
            each
            for each in sorted(self._workspaces.values(), key=lambda each: each.id)
            if each.status in moving or (each.task_unnamed_since or each.agent_breach) is not None
        ]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        self._answer()
        lefts = [(each, self._seconds_left(each)) for each in self._wanted()]
        return [each for each, left in lefts if left is not None and left < 0]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        self._answer()
        if workspace_id is not None:
            workspace = self._workspaces.get(workspace_id)
            return None if workspace is None else self._seconds_left(workspace)
        lefts = (self._seconds_left(each) for each in self._wanted())
        return min((left for left in lefts if left is not None), default=None)

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        self._answer()
        current = [
            (each, self._task_of(each, each.current_task_id))
            for each in sorted(self._workspaces.values(), key=lambda each: each.id)
        ]
        return [
            (each, task) for each, task in current if task is not None and task.cancel is not None
        ]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        self._answer()
        found = []
        for each in self._workspaces.values():
            locked = Locked(each, self._task_of(each, each.current_task_id))
            task = locked.task
            if task is None or task.started_at is None or task.limits.max_duration_seconds is None:
                continue
            reached_at = task.started_at + timedelta(seconds=task.limits.max_duration_seconds)
            if reached_at <= now and task_lifecycle.apply_limits(locked, now).task != task:
                found.append((reached_at, each.id))
        return [workspace_id for _, workspace_id in sorted(found)][:limit]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        self._answer()
        return Counter(each.status for each in self._workspaces.values())

    def _wanted(self) -> list[Workspace]:
        wanted = (each for each in self._workspaces.values() if each.status in _WANTED)
        return sorted(wanted, key=lambda each: each.id)


def _page(found: list[_Listed], before_id: str | None, limit: int) -> list[_Listed]:
    newest_first = sorted(found, key=lambda each: each.id, reverse=True)
    return [each for each in newest_first if before_id is None or each.id < before_id][:limit]
