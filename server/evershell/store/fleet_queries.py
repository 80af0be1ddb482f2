"""What the fleet controller reads: pods, leases, workers, counts. due.py reads what is due."""

from collections.abc import Mapping, Sequence

from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.connections import CALLS_NAME, WORKER_NAME
from evershell.store.part import Part
from evershell.store.pool import fetch_all, fetch_one
from evershell.store.rows import workspace_of
from evershell.store.statements import statements

SQL = statements("fleet_queries")


class FleetQueries(Part):
    """Implements the methods of core.ports.Fleet that list and count."""

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        rows = await fetch_all(self._pool, SQL.list_wanted_pods, after_id=after_id, limit=limit)
        return [workspace_of(row) for row in rows]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        query = SQL.first_lease_seconds_left if workspace_id is None else SQL.lease_seconds_left
        row = await fetch_one(self._pool, query, now=self._clock(), workspace_id=workspace_id)
        return None if row is None else row.seconds

    async def worker_silences(self) -> Sequence[float]:
        rows = await fetch_all(
            self._pool, SQL.worker_silences, worker=WORKER_NAME, calls=CALLS_NAME
        )
        return [row.seconds for row in rows]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        rows = await fetch_all(self._pool, SQL.count_workspaces)
        return {WorkspaceStatus(row.status): row.number for row in rows}
