"""Removes workspaces that are being deleted, and finds the records of removed ones."""

from typing import Any

from evershell.core.ports import DELIVERY_WAIT
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.part import Part
from evershell.store.pool import connected, fetch_one
from evershell.store.statements import statements

SQL = statements("deletions")


class Deletions(Part):
    """Implements Fleet.remove_workspace and Workspaces.find_deleted_workspace of core.ports."""

    # The most rows that one transaction removes from a table. An event may have 4 MiB, which
    # PostgreSQL removes in pieces of 2 KiB, and a statement must not take longer than 5 s.
    removed_at_once = 200

    async def remove_workspace(self, workspace_id: str) -> bool:
        while True:
            now = self._clock()
            parameters = {
                "workspace_id": workspace_id,
                "limit": self.removed_at_once,
                "now": now,
                "waits_since": now - DELIVERY_WAIT,
            }
            async with connected(self._pool) as connection:
                cursor = await connection.execute(SQL.remove_workspace, parameters)
                row: Any = await cursor.fetchone()
            if row.result == "removed":
                self._publish(workspace_id, watched=True, reconcile=False)
            if row.result != "more":
                return bool(row.result == "removed")

    async def find_deleted_workspace(self, workspace_id: str, org_id: str) -> Workspace | None:
        query = SQL.find_deleted_workspace
        row = await fetch_one(self._pool, query, workspace_id=workspace_id, org_id=org_id)
        return None if row is None else Workspace(status=WorkspaceStatus.DELETING, **row._asdict())
