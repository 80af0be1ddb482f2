"""The queries that read without a lock.

They name their columns, so that a later migration which adds a column does not break prepared
statements.
"""

from evershell.core.validation import MAX_PAGE_CHARACTERS
from evershell.store.rows import EVENT_COLUMNS, TASK_COLUMNS, WORKSPACE_COLUMNS

_WORKSPACE = ", ".join(WORKSPACE_COLUMNS)
_TASK = ", ".join(TASK_COLUMNS)
_EVENT = ", ".join(EVENT_COLUMNS)
_OF_W = ", ".join(f"w.{column}" for column in WORKSPACE_COLUMNS)
_OF_T = ", ".join(f"t.{column}" for column in TASK_COLUMNS)

# The parameter is an organization, or NULL for any.
_OF_ORG = "org_id = coalesce(%s, org_id)"
GET_WORKSPACE = f"SELECT {_WORKSPACE} FROM workspaces WHERE id = %s AND {_OF_ORG}"
LIST_WORKSPACES = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE org_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
LIST_OWN_WORKSPACES = (
    f"SELECT {_WORKSPACE} FROM workspaces "
    "WHERE org_id = %s AND created_by_user_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
# The condition of the index workspaces_with_pod.
_WITH_POD = "status IN ('provisioning', 'idle', 'busy', 'stopping')"
LIST_WANTED_PODS = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE {_WITH_POD} AND id > %s ORDER BY id LIMIT %s"
)
# The conditions are those of the indexes workspaces_unsettled and workspaces_breached.
LIST_UNSETTLED = (
    f"SELECT {_WORKSPACE} FROM workspaces "
    "WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL "
    "OR agent_breach IS NOT NULL ORDER BY id"
)
# The query reads the tasks that run, by the index tasks_one_open. An index of the cancelled ones
# would make each cancellation write more than it saves here (docs/decisions/0015).
LIST_CANCELLATIONS = (
    f"SELECT {_OF_W}, {_OF_T} FROM tasks t JOIN workspaces w ON w.id = t.workspace_id "
    "WHERE t.status IN ('submitted', 'delivered', 'running') "
    "AND t.cancel_requested_at IS NOT NULL ORDER BY w.id"
)
# By the index tasks_limited. A task that is cancelled already is left out, unless the limit sets an
# earlier force deadline, to the millisecond.
_REACHED_AT = "(started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds)"
LIST_LIMITS_REACHED = (
    "SELECT workspace_id FROM tasks WHERE max_duration_seconds IS NOT NULL "
    "AND status IN ('submitted', 'delivered', 'running') "
    f"AND {_REACHED_AT} <= (%s::timestamptz AT TIME ZONE 'UTC') "
    "AND (cancel_requested_at IS NULL OR coalesce(cancel_force_at, 'infinity') > started_at + "
    "make_interval(secs => max_duration_seconds + limit_force_after_seconds + 0.001)) "
    f"ORDER BY {_REACHED_AT} LIMIT %s"
)
LIST_EXPIRED_LEASES = (
    f"SELECT {_WORKSPACE} FROM workspaces WHERE {_WITH_POD} AND lease_expires_at < %s ORDER BY id"
)
_SECONDS_LEFT = "SELECT extract(epoch FROM {} - %s::timestamptz)::float8 FROM workspaces WHERE "
FIRST_LEASE_SECONDS_LEFT = _SECONDS_LEFT.format("min(lease_expires_at)") + _WITH_POD
LEASE_SECONDS_LEFT = _SECONDS_LEFT.format("lease_expires_at") + "id = %s"
COUNT_WORKSPACES = "SELECT status, count(*) FROM workspaces GROUP BY status"
GET_TASK = f"SELECT {_TASK} FROM tasks WHERE id = %s AND workspace_id = %s"
GET_WORKSPACE_WITH_TASK = (
    f"SELECT {_OF_W}, {_OF_T} FROM workspaces w "
    "LEFT JOIN tasks t ON t.id = %s AND t.workspace_id = w.id "
    f"WHERE w.id = %s AND {_OF_ORG}"
)
# A page ends early if its texts are long. The worker would need 30 ms to read the rest, which can
# be 20 MB. The list has one task more than fits into the page, or two, so that the caller sees that
# there are more.
LIST_TASKS = (
    f"SELECT {_TASK} FROM ("
    f"SELECT {_TASK}, sum(length(description) + length(result)) OVER ("
    "ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS characters "
    "FROM tasks WHERE workspace_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
    f") t WHERE coalesce(characters, 0) <= {MAX_PAGE_CHARACTERS} ORDER BY id DESC"
)
# A batch ends early if its payloads are large, because an agent may commit 4 MiB in each.
MAX_BATCH_BYTES = 4 * 2**20
LIST_EVENTS = (
    f"SELECT {_EVENT} FROM ("
    f"SELECT {_EVENT}, sum(octet_length(payload::text)) OVER ("
    "ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes "
    "FROM events WHERE workspace_id = %s AND seq > %s ORDER BY seq LIMIT %s"
    f") e WHERE coalesce(bytes, 0) < {MAX_BATCH_BYTES} ORDER BY seq"
)
