-- What the fleet controller reads: whatever is due, by index, and all pods, page by page.

-- part: with_pod
-- The condition of the index workspaces_with_pod.
status IN ('provisioning', 'idle', 'busy', 'stopping')

-- name: list_wanted_pods
SELECT {workspace} FROM workspaces
WHERE {with_pod} AND id > %(after_id)s
ORDER BY id
LIMIT %(limit)s;

-- name: list_unsettled
-- The indexes workspaces_unsettled, workspaces_breached, workspaces_suspending and
-- workspaces_deleting have these conditions.
SELECT {workspace} FROM workspaces
WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL
    OR agent_breach IS NOT NULL
    OR (status = 'suspended' AND run_id IS NOT NULL)
    OR status = 'deleting'
ORDER BY id;

-- name: list_cancellations
-- Reads all open tasks, by the index tasks_one_open. An index of cancelled open tasks would save less
-- here than it would add to the writes of each cancellation (docs/decisions/0015).
SELECT {w.workspace}, {t.task}
FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
WHERE is_open(t) AND t.cancel_requested_at IS NOT NULL
ORDER BY w.id;

-- part: reached_at
-- When a task reaches its max_duration (core/task_limits.py), as in the index tasks_limited.
(started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds)

-- name: list_limits_reached
-- Uses the index tasks_limited. Leaves out a task that is being cancelled, unless the limit sets a
-- force deadline that is earlier by more than a millisecond.
SELECT workspace_id FROM tasks
WHERE max_duration_seconds IS NOT NULL AND is_open(tasks)
    AND {reached_at} <= (%(now)s::timestamptz AT TIME ZONE 'UTC')
    AND (
        cancel_requested_at IS NULL
        OR is_forced_earlier(
            tasks,
            ({reached_at}) AT TIME ZONE 'UTC'
                + make_interval(secs => limit_force_after_seconds + 0.001)
        )
    )
ORDER BY {reached_at}
LIMIT %(limit)s;

-- name: list_expired_leases
SELECT {workspace} FROM workspaces WHERE {with_pod} AND lease_expires_at < %(now)s ORDER BY id;

-- name: first_lease_seconds_left
SELECT extract(epoch FROM min(lease_expires_at) - %(now)s::timestamptz)::float8 AS seconds
FROM workspaces WHERE {with_pod};

-- name: lease_seconds_left
SELECT extract(epoch FROM lease_expires_at - %(now)s::timestamptz)::float8 AS seconds
FROM workspaces WHERE id = %(workspace_id)s;

-- name: worker_silences
-- The listener of a worker (notifications.py) executes a statement every second. `state_change` is
-- null if the server does not track activities, or shows them only to other roles. Also lists the
-- sessions of calls whose commit waits for a disk or a standby: the listener and this statement only
-- read, so they may be fast although no call can commit.
SELECT coalesce(extract(epoch FROM clock_timestamp() - state_change), 0)::float8 AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND (
    application_name = %(worker)s
    OR (
        application_name = %(calls)s AND state = 'active'
        AND lower(wait_event) IN ('syncrep', 'walsync', 'walwrite')
    )
);

-- name: count_workspaces
SELECT status, count(*) AS number FROM workspaces GROUP BY status;
