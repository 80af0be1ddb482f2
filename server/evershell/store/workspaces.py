"""Creates workspaces, and reads them with their tasks."""

from collections.abc import Sequence

from evershell.core.caller import Permission
from evershell.core.change import FirstCall
from evershell.core.event import AuditEntry
from evershell.core.task import Task
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace
from evershell.core.workspace_filter import WorkspaceFilter, WorkspaceSelection
from evershell.store import scans
from evershell.store.audit import store_audit_entry
from evershell.store.holds import hold_of, share_hold
from evershell.store.idempotency_keys import store_key
from evershell.store.part import Part
from evershell.store.pool import connected, fetch_all, fetch_one
from evershell.store.rows import (
    WORKSPACE_COLUMNS,
    insert,
    json_value,
    task_of,
    workspace_of,
    workspace_values,
)
from evershell.store.scans import AFTER_ALL_IDS, listed
from evershell.store.statements import statements

SQL = statements("workspaces", **vars(scans.SQL))


class Workspaces(Part):
    """Implements core.ports.Workspaces, except the lists of tasks and the events."""

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
        card: AgentCard | None = None,
    ) -> None:
        async with (
            connected(self._pool.others) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            held = hold_of(await (await share_hold(connection, workspace.org_id)).fetchone())
            if held is not None:
                raise held.refusal()
            await connection.execute(
                insert("workspaces", WORKSPACE_COLUMNS), workspace_values(workspace)
            )
            if card is not None:
                values = {
                    "workspace_id": workspace.id,
                    "description": card.description,
                    "skills": json_value(dict(card.skills)),
                    "is_public": card.is_public,
                }
                await connection.execute(SQL.add_card, values)
            await store_audit_entry(connection, audit)
            if first_call is not None:
                await store_key(connection, first_call)
        self._publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        named = {"workspace_id": workspace_id, "org_id": org_id}
        row = await fetch_one(self._pool.others, SQL.get_workspace, **named)
        return None if row is None else workspace_of(row)

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        named = {"workspace_id": workspace_id, "org_id": org_id}
        row = await fetch_one(self._pool.others, SQL.get_card, **named)
        if row is None:
            return None, AgentCard()
        if row.card_skills is None:
            return workspace_of(row), AgentCard()
        card = AgentCard(
            description=row.card_description, skills=row.card_skills, is_public=row.card_is_public
        )
        return workspace_of(row), card

    async def list_workspaces(
        self,
        permission: Permission,
        before_id: str | None,
        limit: int,
        workspace_ids: Sequence[str] = (),
    ) -> Listed[Workspace]:
        query = SQL.list_own_workspaces if permission.own_only else SQL.list_workspaces
        return await listed(
            self._pool.lists,
            SQL.list_named_workspaces if workspace_ids else query,
            workspace_of,
            org_id=permission.caller.org_id,
            own_only=permission.own_only,
            user_id=permission.caller.user_id,
            workspace_ids=list(workspace_ids),
            before_id=before_id or AFTER_ALL_IDS,
            limit=limit,
        )

    async def match_failed(
        self, permission: Permission, wanted: WorkspaceSelection, limit: int
    ) -> tuple[int, Sequence[str]]:
        # None matches every workspace.
        ids = creator = None
        if isinstance(wanted, WorkspaceFilter):
            ids, creator = wanted.workspace_ids, wanted.created_by_user_id
        rows = await fetch_all(
            self._pool.lists,
            SQL.match_failed,
            org_id=permission.caller.org_id,
            own_only=permission.own_only,
            user_id=permission.caller.user_id,
            workspace_ids=None if ids is None else list(ids),
            created_by_user_id=creator,
            limit=limit,
        )
        return (rows[0].matched if rows else 0), [row.id for row in rows]

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        row = await fetch_one(self._pool, SQL.get_task, workspace_id=workspace_id, task_id=task_id)
        return None if row is None else task_of(row)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        named = {"workspace_id": workspace_id, "task_id": task_id, "org_id": org_id}
        row = await fetch_one(self._pool, SQL.get_workspace_with_task, **named)
        return (None, None) if row is None else (workspace_of(row), task_of(row))
