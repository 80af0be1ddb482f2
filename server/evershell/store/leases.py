"""The leases of agents."""

from collections.abc import Sequence
from dataclasses import replace

from evershell.core.change import Locked
from evershell.core.ports import RENEW_BELOW_SHARE, Clock, Leased
from evershell.core.workspace import Workspace
from evershell.store.group_commit import GroupCommit
from evershell.store.pool import Connection, Pool, connected
from evershell.store.rows import TASK_COLUMNS, WORKSPACE_COLUMNS, Row, task_of, workspace_of

_W = ", ".join(f"(w).{column}" for column in WORKSPACE_COLUMNS)
_T = ", ".join(f"(t).{column}" for column in TASK_COLUMNS)
_RENEW_LEASES = f"SELECT seconds_left, {_W}, {_T} FROM renew_leases(%s, %s, %s, %s, %s)"
_EXTEND_LEASE = (
    "UPDATE workspaces SET lease_expires_at = greatest("
    "lease_expires_at, %s + make_interval(secs => %s)) "
    "WHERE id = %s RETURNING lease_expires_at"
)


# A heartbeat may wait for the previous statement, so that the next one carries many.
_MAX_BATCH, _AT_ONCE = 64, 1
_FIRST_OF_TASK = 1 + len(WORKSPACE_COLUMNS)

# A workspace id, an epoch and the length of a lease in seconds.
_Request = tuple[str, int, float]


class Leases:
    """Renews leases. Heartbeats that arrive at the same time share a statement."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._group = GroupCommit(self._renew, max_batch=_MAX_BATCH, at_once=_AT_ONCE)

    async def renew(self, workspace_id: str, epoch: int, lease_seconds: float) -> Leased | None:
        """Implements Store.renew_lease of evershell.core.ports."""
        return await self._group((workspace_id, epoch, lease_seconds))

    async def drained(self) -> None:
        """Returns when no shared statement is in flight."""
        await self._group.drained()

    async def _renew(self, requests: Sequence[_Request]) -> Sequence[Leased | None]:
        columns = (list(column) for column in zip(*requests, strict=True))
        parameters = (*columns, RENEW_BELOW_SHARE, self._clock())
        async with connected(self._pool) as connection:
            cursor = await connection.execute(_RENEW_LEASES, parameters, prepare=True, binary=True)
            return [_leased(row) for row in await cursor.fetchall()]

    async def extend(
        self, connection: Connection, workspace: Workspace, lease_seconds: float
    ) -> Workspace:
        """Renews the lease of a workspace that the connection has locked."""
        cursor = await connection.execute(
            _EXTEND_LEASE, (self._clock(), lease_seconds, workspace.id), prepare=True, binary=True
        )
        row = await cursor.fetchone()
        assert row is not None
        return replace(workspace, lease_expires_at=row[0])


def _leased(row: Row) -> Leased | None:
    if row[1] is None:
        return None
    task = None if row[_FIRST_OF_TASK] is None else task_of(row[_FIRST_OF_TASK:])
    seconds = float("-inf") if row[0] is None else row[0]
    return Leased(Locked(workspace_of(row[1:_FIRST_OF_TASK]), task), seconds)
