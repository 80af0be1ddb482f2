-- What the fleet controller reads: pods, leases, workers, counts. due.sql reads what is due.

-- part: with_pod
-- The same condition as in the index workspaces_with_pod.
status IN ('provisioning', 'idle', 'busy', 'stopping')

-- name: list_wanted_pods
SELECT {workspace} FROM workspaces
WHERE {with_pod} AND id > %(after_id)s
ORDER BY id
LIMIT %(limit)s;

-- name: first_lease_seconds_left
SELECT extract(epoch FROM min(lease_expires_at) - %(now)s::timestamptz)::float8 AS seconds
FROM workspaces WHERE {with_pod};

-- name: lease_seconds_left
SELECT extract(epoch FROM lease_expires_at - %(now)s::timestamptz)::float8 AS seconds
FROM workspaces WHERE id = %(workspace_id)s;

-- name: worker_silences
-- How long ago the listener of each worker (notifications.py) last did something: it executes a
-- statement every second. `state_change` is NULL if the server does not track activities, or does
-- not show them to this role. Also lists the sessions of calls whose commit waits for a disk or a
-- standby, because the listener only reads, so it may be fast although no call can commit.
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
