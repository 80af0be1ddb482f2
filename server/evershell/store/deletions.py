"""Removes workspaces that are deleted, and finds the records of those that were."""

from typing import Any

from evershell.core.ports import DELIVERY_WAIT, Clock
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.connections import Pool, connected, fetch_one
from evershell.store.notifications import Publish

# At most so many events in a transaction. Each may have 4 MiB, which PostgreSQL removes in pieces
# of 2 KiB, and a statement may take 5 s.
_BATCH = 200
_REMOVE = "SELECT remove_workspace(%s, %s, %s, %s) AS result"
_COLUMNS = "id, org_id, name, status_reason, created_by_user_id, created_at, updated_at, epoch"
_FIND = f"SELECT {_COLUMNS} FROM deleted_workspaces WHERE id = %s AND org_id = %s"


class Deletions:
    """Implements Store.remove_workspace and Store.find_deleted_workspace."""

    def __init__(self, pool: Pool, clock: Clock, publish: Publish, batch: int = _BATCH) -> None:
        """Calls `publish` when a workspace is gone."""
        self._pool = pool
        self._clock = clock
        self._publish = publish
        self._batch = batch

    async def remove(self, workspace_id: str) -> bool:
        """See Store.remove_workspace."""
        while True:
            now = self._clock()
            parameters = (workspace_id, self._batch, now, now - DELIVERY_WAIT)
            async with connected(self._pool) as connection:
                row: Any = await (await connection.execute(_REMOVE, parameters)).fetchone()
            if row.result == "removed":
                self._publish(workspace_id, watched=True, reconcile=False)
            if row.result != "more":
                return bool(row.result == "removed")

    async def find(self, workspace_id: str, org_id: str) -> Workspace | None:
        """See Store.find_deleted_workspace."""
        row = await fetch_one(self._pool, _FIND, (workspace_id, org_id))
        return None if row is None else Workspace(status=WorkspaceStatus.DELETING, **row._asdict())
