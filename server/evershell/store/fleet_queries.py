"""What the fleet controller reads: what is due, by index, and all pods, a page at a time."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from evershell.core.ports import Clock
from evershell.core.task import Task
from evershell.core.webhook import DeliveryCounts
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.store.connections import CALLS_NAME, WORKER_NAME, Pool, fetch_all, fetch_one
from evershell.store.rows import task_columns, task_of, workspace_columns, workspace_of

_WORKSPACE = workspace_columns()
_BOTH = f"{workspace_columns('w.')}, {task_columns('t.')}"
# The condition of the index workspaces_with_pod.
WITH_POD = "status IN ('provisioning', 'idle', 'busy', 'stopping')"
LIST_WANTED_PODS = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE {WITH_POD} AND id > %s ORDER BY id LIMIT %s"
)
# The conditions are those of the indexes workspaces_unsettled, workspaces_breached,
# workspaces_suspending and workspaces_deleting.
LIST_UNSETTLED = (
    f"SELECT {_WORKSPACE} FROM workspaces "
    "WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL "
    "OR agent_breach IS NOT NULL OR (status = 'suspended' AND run_id IS NOT NULL) "
    "OR status = 'deleting' ORDER BY id"
)
# The query reads the tasks that run, by the index tasks_one_open. An index of the cancelled ones
# would make each cancellation write more than it saves here (docs/decisions/0015).
LIST_CANCELLATIONS = (
    f"SELECT {_BOTH} FROM tasks t JOIN workspaces w ON w.id = t.workspace_id "
    "WHERE t.status IN ('submitted', 'delivered', 'running') "
    "AND t.cancel_requested_at IS NOT NULL ORDER BY w.id"
)
# By the index tasks_limited. A task that is cancelled already is left out, unless the limit sets an
# earlier force deadline, to the millisecond.
REACHED_AT = "(started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds)"
LIST_LIMITS_REACHED = (
    "SELECT workspace_id FROM tasks WHERE max_duration_seconds IS NOT NULL "
    "AND status IN ('submitted', 'delivered', 'running') "
    f"AND {REACHED_AT} <= (%s::timestamptz AT TIME ZONE 'UTC') "
    "AND (cancel_requested_at IS NULL OR coalesce(cancel_force_at, 'infinity') > started_at + "
    "make_interval(secs => max_duration_seconds + limit_force_after_seconds + 0.001)) "
    f"ORDER BY {REACHED_AT} LIMIT %s"
)
LIST_EXPIRED_LEASES = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE {WITH_POD} AND lease_expires_at < %s ORDER BY id"
)
SECONDS_LEFT = (
    "SELECT extract(epoch FROM {} - %s::timestamptz)::float8 AS seconds FROM workspaces WHERE "
)
FIRST_LEASE_SECONDS_LEFT = SECONDS_LEFT.format("min(lease_expires_at)") + WITH_POD
LEASE_SECONDS_LEFT = SECONDS_LEFT.format("lease_expires_at") + "id = %s"
# The listener of a worker (notifications.py) executes a statement every second. `state_change` is
# null if the server does not track activities, or shows them only to other roles. A session that
# serves a call counts while its commit waits for a disk or a standby: reads may be fast meanwhile.
WORKER_SILENCES = (
    "SELECT coalesce(extract(epoch FROM clock_timestamp() - state_change), 0)::float8 AS seconds "
    "FROM pg_stat_activity WHERE datname = current_database() "
    "AND (application_name = %s OR (application_name = %s AND state = 'active' "
    "AND lower(wait_event) IN ('syncrep', 'walsync', 'walwrite')))"
)
COUNT_WORKSPACES = "SELECT status, count(*) AS number FROM workspaces GROUP BY status"
# Uses the indexes of due and of failed deliveries. Counts at most 10,001 of each, to stay cheap.
COUNT_DELIVERIES = (
    "SELECT p.pending, p.oldest, f.failed FROM ("
    "SELECT count(*) AS pending, min(pending_since) AS oldest FROM ("
    "SELECT pending_since FROM webhook_deliveries WHERE due_at IS NOT NULL LIMIT 10001) few) p, "
    "(SELECT count(*) AS failed FROM ("
    "SELECT FROM webhook_deliveries WHERE failed LIMIT 10001) few) f"
)


class FleetQueries:
    """Implements the queries of Store for the fleet controller."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        rows = await fetch_all(self._pool, LIST_WANTED_PODS, (after_id, limit))
        return [workspace_of(row) for row in rows]

    async def list_unsettled(self) -> Sequence[Workspace]:
        return [workspace_of(row) for row in await fetch_all(self._pool, LIST_UNSETTLED, ())]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        rows = await fetch_all(self._pool, LIST_EXPIRED_LEASES, (self._clock(),))
        return [workspace_of(row) for row in rows]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        if workspace_id is None:
            row = await fetch_one(self._pool, FIRST_LEASE_SECONDS_LEFT, (self._clock(),))
        else:
            row = await fetch_one(self._pool, LEASE_SECONDS_LEFT, (self._clock(), workspace_id))
        return None if row is None else row.seconds

    async def worker_silences(self) -> Sequence[float]:
        rows = await fetch_all(self._pool, WORKER_SILENCES, (WORKER_NAME, CALLS_NAME))
        return [row.seconds for row in rows]

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        rows = await fetch_all(self._pool, LIST_CANCELLATIONS, ())
        return [(workspace_of(row), task) for row in rows if (task := task_of(row))]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        rows = await fetch_all(self._pool, LIST_LIMITS_REACHED, (now, limit))
        return [row.workspace_id for row in rows]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        rows = await fetch_all(self._pool, COUNT_WORKSPACES, ())
        return {WorkspaceStatus(row.status): row.number for row in rows}

    async def count_deliveries(self) -> DeliveryCounts:
        row = await fetch_one(self._pool, COUNT_DELIVERIES, ())
        return DeliveryCounts(row.pending, row.failed, row.oldest)
