-- What is due for the fleet controller. core/due.py says what each kind means.

-- part: reached_at
-- When a task reaches its max_duration (core/task_limits.py). The index tasks_limited has the same
-- expression.
(started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds)

-- part: tree_usage
-- The usage of the root `t` and of its descendants. Uses the index tasks_of_root. `open` is the
-- reported usage of the current iteration, as rows.py reads it; NULL if there is none. The cost of
-- the tree is NULL if one of its costs is unknown.
(
    SELECT sum(input) AS tree_input_tokens,
        sum(output) AS tree_output_tokens,
        CASE WHEN count(*) = count(cost) THEN sum(cost) END AS tree_cost_nanos
    FROM (
        SELECT t.*
        UNION ALL
        SELECT d.* FROM tasks d WHERE d.ancestor_ids IS NOT NULL AND d.ancestor_ids[1] = t.id
    ) of_tree
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN completed_at IS NULL
                AND (open_iteration ->> 'number')::integer = iterations + 1
            THEN open_iteration -> 'usage'
        END AS open
    ) o
    CROSS JOIN LATERAL (
        SELECT input_tokens + coalesce((open ->> 'input_tokens')::bigint, 0) AS input,
            output_tokens + coalesce((open ->> 'output_tokens')::bigint, 0) AS output,
            cost_nanos + CASE
                WHEN open IS NULL THEN 0 ELSE (open ->> 'cost_nanos')::bigint
            END AS cost
    ) used
)

-- part: trees_at_a_limit
-- The roots of the trees that have an open task and have reached a limit for the whole tree. Uses
-- the index tasks_in_limited_trees. Leaves out a tree in which every open task is being cancelled,
-- unless the limit would set an earlier force deadline now. An unknown cost counts as
-- having reached max_cost (core/task_limits.py).
SELECT coalesce(t.started_at, t.completed_at, t.created_at) AS since, t.workspace_id, t.id AS task_id
FROM (
    SELECT coalesce(ancestor_ids[1], id) AS root_id,
        bool_or(cancel_requested_at IS NULL) AS has_uncancelled,
        max(coalesce(cancel_force_at, 'infinity')) AS last_force_at
    FROM tasks
    WHERE in_limited_tree AND is_open(tasks)
    GROUP BY 1
    OFFSET 0
) tree
JOIN tasks t ON t.id = root_id
CROSS JOIN LATERAL {tree_usage} used
WHERE (
    has_uncancelled
    OR last_force_at > %(now)s::timestamptz + make_interval(secs => t.limit_force_after_seconds)
) AND (
    coalesce(t.started_at, t.completed_at) + make_interval(secs => t.max_duration_seconds)
        <= %(now)s::timestamptz
    OR tree_input_tokens + tree_output_tokens >= t.max_total_tokens
    OR coalesce(tree_cost_nanos, t.max_cost_nanos) >= t.max_cost_nanos
)

-- part: rows_of_kind
-- The rows of the kind `wanted.kind`. PostgreSQL skips the SELECTs for other kinds.
--
-- The bounds for `overdue` are in core/bounds.py. Uses the indexes workspaces_breached and
-- workspaces_unsettled.
SELECT updated_at AS since, id AS workspace_id, NULL AS task_id FROM workspaces
WHERE kind = 'overdue' AND agent_breach IS NOT NULL
UNION ALL
SELECT task_unnamed_since + make_interval(secs => %(lease_seconds)s), id, NULL FROM workspaces
WHERE kind = 'overdue' AND task_unnamed_since IS NOT NULL
UNION ALL
SELECT updated_at + make_interval(secs => %(start_seconds)s), id, NULL FROM workspaces
WHERE kind = 'overdue' AND status = 'provisioning'
UNION ALL
SELECT least(
        force_begins_at + make_interval(secs => %(force_margin_seconds)s),
        requested_at + make_interval(secs => %(cancel_seconds)s)
    ), workspace_id, id
FROM cancelled WHERE kind = 'overdue'
UNION ALL
-- Reads the rows of all workspaces in these statuses, because no index contains the leases.
SELECT lease_expires_at, id, NULL FROM workspaces
WHERE kind = 'lease' AND lease_expires_at < %(now)s
    AND status IN ('provisioning', 'idle', 'busy', 'stopping')
UNION ALL
-- Leaves out a task that is being cancelled, unless the limit sets a force deadline that is earlier
-- by more than a millisecond.
SELECT ({reached_at}) AT TIME ZONE 'UTC', workspace_id, id FROM tasks
WHERE kind = 'task_limit' AND max_duration_seconds IS NOT NULL AND is_open(tasks)
    AND {reached_at} <= (%(now)s::timestamptz AT TIME ZONE 'UTC')
    AND (
        cancel_requested_at IS NULL
        OR is_forced_earlier(
            tasks,
            ({reached_at}) AT TIME ZONE 'UTC'
                + make_interval(secs => limit_force_after_seconds + 0.001)
        )
    )
UNION ALL
SELECT * FROM ({trees_at_a_limit}) trees WHERE kind = 'tree_limit'
UNION ALL
SELECT requested_at, workspace_id, cancelled.id
FROM workspaces w JOIN cancelled ON cancelled.id = w.current_task_id
WHERE kind = 'unstarted' AND w.status = 'provisioning'
UNION ALL
SELECT requested_at, workspace_id, id FROM cancelled WHERE kind = 'cancellation'
UNION ALL
-- Uses the indexes workspaces_unsettled, workspaces_suspending and workspaces_deleting.
SELECT updated_at, id, NULL FROM workspaces WHERE kind = 'start' AND status = 'provisioning'
UNION ALL
SELECT updated_at, id, NULL FROM workspaces WHERE kind = 'stop' AND status = 'stopping'
UNION ALL
SELECT updated_at, id, NULL FROM workspaces
WHERE kind = 'stop' AND status = 'deleting' AND run_id IS NOT NULL
UNION ALL
SELECT updated_at, id, NULL FROM workspaces
WHERE kind = 'suspension' AND status = 'suspended' AND run_id IS NOT NULL
UNION ALL
SELECT updated_at, id, NULL FROM workspaces
WHERE kind = 'removal' AND status = 'deleting' AND run_id IS NULL

-- name: plan_once
-- Makes PostgreSQL reuse the plan of a prepared query. To plan the query `due` takes longer than to
-- execute it.
SELECT set_config('plan_cache_mode', 'force_generic_plan', true);

-- name: due
-- The LIMIT applies to each kind separately. Each row has the number of open cancellations, so the
-- query returns a row even if nothing is due. Reads all open tasks once, with the index
-- tasks_one_open. An index of only the cancelled tasks would save less here than it would cost in
-- the writes of each cancellation (docs/decisions/0015). The LATERAL queries look up each row by
-- its id. For a plain join, PostgreSQL might read all rows.
WITH cancelled AS MATERIALIZED (
    SELECT id, workspace_id, cancel_requested_at AS requested_at,
        CASE
            WHEN cancel_force_at IS NOT NULL THEN greatest(cancel_force_at, cancel_requested_at)
        END AS force_begins_at
    FROM tasks WHERE is_open(tasks) AND cancel_requested_at IS NOT NULL
)
SELECT totals.*, wanted.kind, due.since, {w.workspace}, {t.task}, used.*
FROM (
    SELECT count(*) AS open_cancellations, min(requested_at) AS oldest_cancellation FROM cancelled
) totals
LEFT JOIN (
    unnest(%(kinds)s::text[], %(after_since)s::timestamptz[], %(after_ids)s::text[])
        AS wanted (kind, after_since, after_id)
    CROSS JOIN LATERAL (
        SELECT since, workspace_id, task_id FROM ({rows_of_kind}) found
        WHERE (kind <> 'overdue' OR since <= %(now)s)
            AND (since, coalesce(task_id, workspace_id)) > (after_since, after_id)
        ORDER BY since, coalesce(task_id, workspace_id)
        LIMIT %(limit)s
    ) due
    CROSS JOIN LATERAL (SELECT * FROM workspaces WHERE workspaces.id = workspace_id OFFSET 0) w
    LEFT JOIN LATERAL (SELECT * FROM tasks WHERE tasks.id = task_id OFFSET 0) t ON true
    LEFT JOIN LATERAL (
        SELECT * FROM {tree_usage} tree WHERE kind = 'tree_limit' OFFSET 0
    ) used ON true
) ON true;
