"""What the fleet controller reads: what is due, by index, and everything, a page at a time."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from evershell.core.ports import Clock
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store import queries
from evershell.store.pool import Pool, connected
from evershell.store.rows import WORKSPACE_COLUMNS, Row, task_of, workspace_of


class FleetReads:
    """Implements the methods of core.ports.Store that only the fleet controller calls."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        rows = await self._all(queries.LIST_WANTED_PODS, (after_id, limit))
        return [workspace_of(row) for row in rows]

    async def list_unsettled(self) -> Sequence[Workspace]:
        return [workspace_of(row) for row in await self._all(queries.LIST_UNSETTLED, ())]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        rows = await self._all(queries.LIST_EXPIRED_LEASES, (self._clock(),))
        return [workspace_of(row) for row in rows]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        if workspace_id is None:
            row = await self._one(queries.FIRST_LEASE_SECONDS_LEFT, (self._clock(),))
        else:
            row = await self._one(queries.LEASE_SECONDS_LEFT, (self._clock(), workspace_id))
        return None if row is None else row[0]

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        width = len(WORKSPACE_COLUMNS)
        return [
            (workspace_of(row[:width]), task_of(row[width:]))
            for row in await self._all(queries.LIST_CANCELLATIONS, ())
        ]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        return [row[0] for row in await self._all(queries.LIST_LIMITS_REACHED, (now, limit))]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        return {
            WorkspaceStatus(status): count
            for status, count in await self._all(queries.COUNT_WORKSPACES, ())
        }

    async def _one(self, query: str, parameters: Row) -> Row | None:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchone()

    async def _all(self, query: str, parameters: Row) -> Sequence[Row]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchall()
