"""Workspaces, tasks and events."""

from collections.abc import Collection, Iterator, Sequence

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.event import AuditEntry, Event, EventBatch, LogEntry, LogScope
from evershell.core.task import Task
from evershell.core.task_filter import EVERY_TASK, ListFilter, OrgListFilter
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus
from evershell.core.workspace_filter import AllWorkspaces, WorkspaceSelection
from evershell.store.memory.state import State, covers, page


class Workspaces(State):
    """Creates workspaces, and reads them with their tasks and events."""

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
        card: AgentCard | None = None,
    ) -> None:
        if (hold := self.holds.get(workspace.org_id)) is not None:
            raise hold.refusal()
        self._store_key(first_call)
        self.workspaces[workspace.id] = workspace
        if card is not None:
            self.cards[workspace.id] = card
        self._store_audit_entry(audit)
        self._publish(workspace)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        found = self.workspaces.get(workspace_id)
        return None if found is None or org_id not in (None, found.org_id) else found

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        found = await self.get_workspace(workspace_id, org_id)
        return found, self.cards.get(workspace_id, AgentCard())

    async def list_workspaces(
        self,
        permission: Permission,
        before_id: str | None,
        limit: int,
        workspace_ids: Sequence[str] = (),
    ) -> Listed[Workspace]:
        found = (
            each
            for each in self.workspaces.values()
            if covers(permission, each) and (not workspace_ids or each.id in workspace_ids)
        )
        return page(found, before_id, limit)

    async def match_failed(
        self, permission: Permission, wanted: WorkspaceSelection, limit: int
    ) -> tuple[int, Sequence[str]]:
        ids = sorted(
            each.id
            for each in self.workspaces.values()
            if each.status is WorkspaceStatus.FAILED
            and covers(permission, each)
            and (isinstance(wanted, AllWorkspaces) or wanted.matches(each))
        )
        return len(ids), ids[:limit]

    async def find_deleted_workspace(self, workspace_id: str, org_id: str) -> Workspace | None:
        found = self.deleted.get(workspace_id)
        return found if found is not None and found.org_id == org_id else None

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        workspace = self.workspaces.get(workspace_id)
        return None if workspace is None else self._task_of(workspace, task_id)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        workspace = await self.get_workspace(workspace_id, org_id)
        return workspace, None if workspace is None else self._task_of(workspace, task_id)

    async def list_tasks(
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Listed[Task]:
        return page(self._matching(workspace_id, wanted), before_id, limit)

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        return sum(1 for _ in self._matching(workspace_id, wanted))

    def _matching(self, workspace_id: str, wanted: ListFilter) -> Iterator[Task]:
        for task in self.tasks.values():
            if task.workspace_id == workspace_id and wanted.matches(task):
                yield task

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Listed[Task]:
        found = (
            task
            for task in self.tasks.values()
            if covers(permission, self.workspaces[task.workspace_id]) and wanted.matches(task)
        )
        return page(found, before_id, limit)

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        if workspace_id not in self.workspaces:
            raise errors.workspace_not_found(workspace_id)
        later = [event for event in self.events[workspace_id] if event.seq > after_seq]
        return EventBatch(later[:limit])

    async def list_last_events(
        self, workspace_id: str, before_seq: int, limit: int
    ) -> tuple[Sequence[Event], bool]:
        earlier = [event for event in self.events[workspace_id] if event.seq < before_seq]
        return earlier[: -limit - 1 : -1], len(earlier) > limit

    async def last_position(self) -> int:
        return self.position

    async def find_log_end(self) -> "MemoryLogEnd":
        return MemoryLogEnd(self)

    async def list_log_events(
        self,
        scopes: Collection[LogScope],
        after: int,
        until: int,
        limit: int,
        *,
        at_once: bool = False,
    ) -> tuple[Sequence[LogEntry], int]:
        found = [
            LogEntry(event, workspace.org_id, creator_id)
            for workspace in self.workspaces.values()
            for creator_id in [workspace.created_by_user_id]
            if any(LogScope(workspace.org_id, each) in scopes for each in (None, creator_id))
            for event in self.events[workspace.id]
            if after < event.position <= until
        ]
        entries = sorted(found, key=lambda entry: entry.event.position)[:limit]
        return entries, entries[-1].event.position if len(entries) == limit else until


class MemoryLogEnd:
    """Implements core.ports.LogEnd."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.position = state.position

    async def advance(self) -> bool:
        self.position = self._state.position
        return True
