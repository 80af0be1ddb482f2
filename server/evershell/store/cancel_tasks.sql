-- Finds and cancels many tasks of an organization, and trees of tasks.

-- name: cancel_tasks
SELECT workspace_id, task_id, outcome = 'accepted' AS is_new, watched
FROM cancel_tasks(
    p_request => json_populate_record(NULL::cancellation_request, %(request)s),
    p_task_ids => %(task_ids)s,
    p_wait => %(wait)s
);

-- name: cancel_tree
SELECT {result}, descendants
FROM cancel_tree(json_populate_record(NULL::cancellation_request, %(request)s));

-- name: match_tasks
-- Without ids, uses the index workspaces_with_task. The counts include the tasks beyond the limit.
-- A filter that is NULL matches every task. An API key has no user (NULL), and no creator matches
-- NULL.
SELECT
    workspace_id, task_id, is_pending, count(*) OVER () AS matched,
    count(*) FILTER (WHERE is_pending) OVER () AS pending
FROM (
    SELECT
        w.id AS workspace_id, t.id AS task_id,
        CASE cancellation_outcome(w, t, true, false, NULL)
            WHEN 'accepted' THEN true
            WHEN 'already_requested' THEN is_forced_earlier(t, %(force_at)s)
            ELSE false
        END AS is_pending
    FROM workspaces w JOIN tasks t ON t.id = w.current_task_id
    WHERE w.org_id = %(org_id)s AND w.current_task_id IS NOT NULL AND is_open(t)
        AND (NOT %(own_only)s OR w.created_by_user_id = %(user_id)s)
        AND (%(task_ids)s::text[] IS NULL OR t.id = ANY (%(task_ids)s))
        AND (%(workspace_ids)s::text[] IS NULL OR w.id = ANY (%(workspace_ids)s))
        AND (%(created_by_user_id)s::text IS NULL OR w.created_by_user_id = %(created_by_user_id)s)
        AND (%(submitted_by)s::text IS NULL OR t.submitted_by = %(submitted_by)s)
        AND (%(submitted_before)s::timestamptz IS NULL OR t.created_at < %(submitted_before)s)
        AND (%(metadata)s::jsonb IS NULL OR t.metadata @> %(metadata)s)
) found
ORDER BY is_pending DESC, task_id
LIMIT %(limit)s;
