"""The leases of agents. The clock of the database alone decides how long they last."""

from dataclasses import replace
from datetime import datetime

from server.core.change import Locked
from server.core.ports import RENEW_BELOW_SHARE, Clock, Leased
from server.core.workspace import Workspace
from server.store.pool import Connection, Pool, connected
from server.store.rows import TASK_COLUMNS, WORKSPACE_COLUMNS, task_of, workspace_of

_W = ", ".join(f"(w).{column}" for column in WORKSPACE_COLUMNS)
_T = ", ".join(f"(t).{column}" for column in TASK_COLUMNS)
_RENEW_LEASES = f"SELECT seconds_left, {_W}, {_T} FROM renew_leases(%s, %s, %s, %s, %s)"
_EXTEND_LEASE = (
    "UPDATE workspaces SET lease_expires_at = greatest("
    "lease_expires_at, coalesce(%s, clock_timestamp()) + make_interval(secs => %s)) "
    "WHERE id = %s RETURNING lease_expires_at"
)


class Leases:
    """Renews leases."""

    def __init__(self, pool: Pool, clock: Clock | None = None) -> None:
        """Tests replace the clock of the database with `clock`."""
        self._pool = pool
        self._clock = clock

    async def renew(self, workspace_id: str, epoch: int, lease_seconds: float) -> Leased | None:
        """Implements Store.renew_lease of server.core.ports."""
        parameters = ([workspace_id], [epoch], [lease_seconds], RENEW_BELOW_SHARE, self._now())
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_RENEW_LEASES, parameters, prepare=True, binary=True)
            row = await cursor.fetchone()
        assert row is not None
        after_workspace = 1 + len(WORKSPACE_COLUMNS)
        if row[1] is None:
            return None
        task = None if row[after_workspace] is None else task_of(row[after_workspace:])
        return Leased(
            Locked(workspace_of(row[1:after_workspace]), task),
            lease_seconds=float("-inf") if row[0] is None else row[0],
        )

    async def extend(
        self, connection: Connection, workspace: Workspace, lease_seconds: float
    ) -> Workspace:
        """Renews the lease of a workspace that the connection has locked."""
        cursor = await connection.execute(
            _EXTEND_LEASE, (self._now(), lease_seconds, workspace.id), prepare=True, binary=True
        )
        row = await cursor.fetchone()
        assert row is not None
        return replace(workspace, lease_expires_at=row[0])

    def _now(self) -> datetime | None:
        return None if self._clock is None else self._clock()
