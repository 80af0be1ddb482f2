"""Removes workspaces that are being deleted, and finds the records of removed ones."""

from typing import Any

from evershell.core.ports import DELIVERY_WAIT, Clock
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.pool import Pool, connected, fetch_one
from evershell.store.publish import Publish
from evershell.store.statements import statements

# The most events that one transaction removes. Each may have 4 MiB, which PostgreSQL removes in
# pieces of 2 KiB, and a statement may take 5 s.
_BATCH = 200
SQL = statements("deletions")


class Deletions:
    """Implements Store.remove_workspace and Store.find_deleted_workspace."""

    def __init__(self, pool: Pool, clock: Clock, publish: Publish, batch: int = _BATCH) -> None:
        """`publish` is called once a workspace was removed."""
        self._pool = pool
        self._clock = clock
        self._publish = publish
        self._batch = batch

    async def remove(self, workspace_id: str) -> bool:
        """See Store.remove_workspace."""
        while True:
            now = self._clock()
            parameters = {
                "workspace_id": workspace_id,
                "limit": self._batch,
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

    async def find(self, workspace_id: str, org_id: str) -> Workspace | None:
        """See Store.find_deleted_workspace."""
        query = SQL.find_deleted_workspace
        row = await fetch_one(self._pool, query, workspace_id=workspace_id, org_id=org_id)
        return None if row is None else Workspace(status=WorkspaceStatus.DELETING, **row._asdict())
