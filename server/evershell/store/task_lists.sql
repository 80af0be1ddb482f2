-- Lists of the tasks of a workspace, of a tree, and of an organization (scans.sql).

-- part: page_of_tasks
-- A page ends early if its texts are long. A full page could have 20 MB of texts, which would take
-- a worker 30 ms to read. The list has one or two tasks more than fit into the page, so that the
-- caller sees that further tasks exist.
SELECT {task}, matches, last_id
FROM (
    SELECT *, sum(length(description) + length(result)) OVER (
        ORDER BY scan_key DESC, scan_id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING
    ) AS characters
    FROM ({page}) matching
) t
WHERE coalesce(characters, 0) <= {max_characters}
ORDER BY scan_key DESC, scan_id DESC

-- part: newest_of_workspace
-- Uses the index tasks_of_workspace.
SELECT *, workspace_id AS scan_key, id AS scan_id FROM tasks
WHERE workspace_id = ANY (ARRAY[%(workspace_id)s::text]) AND id < %(before_id)s
ORDER BY workspace_id DESC, id DESC
LIMIT {scanned}

-- part: is_listed
-- The condition of a ListFilter. The CASE expression is `Task.listed_status` in core/task.py.
(
    %(statuses)s::text[] IS NULL
    OR CASE
        WHEN cancel_requested_at IS NOT NULL AND completed_at IS NULL THEN 'running'
        ELSE status::text
    END = ANY (%(statuses)s::text[])
)
AND (
    %(changed_since)s::timestamptz IS NULL
    OR coalesce(completed_at, greatest(created_at, started_at, cancel_requested_at))
        >= %(changed_since)s::timestamptz
)

-- name: list_of_workspace
WITH newest AS ({newest_of_workspace}), checked AS (SELECT *, {is_listed} AS matches FROM newest)
{page_of_tasks};

-- name: count_of_workspace
SELECT count(*) AS number FROM ({newest_of_workspace}) newest WHERE {is_listed};

-- part: root_id
-- The same expression as in functions/root_of.sql and in the index tasks_in_tree.
coalesce(ancestor_ids[1], id)

-- part: parent_id
-- The same expression as in the index tasks_of_parent.
ancestor_ids[cardinality(ancestor_ids)]

-- part: checked
-- Whether the permission covers a row and an OrgListFilter matches it, except for its field
-- `active`. An API key has no user (NULL), and no creator matches NULL.
checked AS (
    SELECT *, (
            SELECT w.org_id = %(org_id)s
                AND (NOT %(own_only)s OR w.created_by_user_id = %(user_id)s)
            FROM workspaces w WHERE w.id = newest.workspace_id
        )
        AND (%(workspace_id)s = '' OR workspace_id = %(workspace_id)s)
        AND (
            cardinality(%(workspace_ids)s::text[]) = 0
            OR workspace_id = ANY (%(workspace_ids)s::text[])
        )
        AND (%(parent_task_id)s = '' OR {parent_id} = %(parent_task_id)s)
        AND (%(root_task_id)s = '' OR {root_id} = %(root_task_id)s) AS matches
    FROM newest
)

-- name: list_children
-- Uses the index tasks_of_parent, which has the condition `ancestor_ids IS NOT NULL`. The query
-- must repeat the condition, because PostgreSQL does not infer it from the comparison of the key.
WITH newest AS (
    SELECT *, {parent_id} AS scan_key, id AS scan_id FROM tasks
    WHERE {parent_id} = ANY (ARRAY[%(parent_task_id)s::text])
        AND id < %(before_id)s AND ancestor_ids IS NOT NULL
    ORDER BY {parent_id} DESC, id DESC
    LIMIT {scanned}
), {checked}
{page_of_tasks};

-- name: list_descendants
-- The descendants of a root. Uses the index tasks_in_tree, because the index tasks_of_root has
-- another order.
WITH newest AS (
    SELECT *, {root_id} AS scan_key, id AS scan_id FROM tasks
    WHERE {root_id} = ANY (ARRAY[%(root_task_id)s::text])
        AND id < %(before_id)s AND ancestor_ids IS NOT NULL
    ORDER BY {root_id} DESC, id DESC
    LIMIT {scanned}
), {checked}
{page_of_tasks};

-- name: find_root
WITH newest AS (
    SELECT * FROM tasks
    WHERE id = %(root_task_id)s AND id < %(before_id)s AND ancestor_ids IS NULL
), {checked}
SELECT {task} FROM checked WHERE matches;

-- part: current_tasks
-- The tasks of workspaces `w` that have not ended. The LATERAL query looks up each task by its id. For
-- a plain join, PostgreSQL might read all tasks.
LATERAL (SELECT * FROM tasks WHERE tasks.id = w.current_task_id OFFSET 0) t

-- name: list_active
-- Uses the index workspaces_with_task.
WITH newest AS (
    SELECT t.*, w.org_id AS scan_key, w.current_task_id AS scan_id
    FROM workspaces w, {current_tasks}
    WHERE w.org_id = ANY (ARRAY[%(org_id)s::text]) AND w.current_task_id < %(before_id)s
    ORDER BY w.org_id DESC, w.current_task_id DESC
    LIMIT {scanned}
), {checked}
{page_of_tasks};

-- name: list_active_of_workspace
WITH newest AS (
    SELECT t.*, w.id AS scan_key, w.current_task_id AS scan_id
    FROM workspaces w, {current_tasks}
    WHERE w.id = ANY (ARRAY[%(workspace_id)s::text]) AND w.current_task_id < %(before_id)s
    ORDER BY w.id DESC, w.current_task_id DESC
    LIMIT {scanned}
), {checked}
{page_of_tasks};

-- name: list_active_of_named
WITH newest AS (
    SELECT t.*, w.org_id AS scan_key, w.current_task_id AS scan_id
    FROM {named_workspaces}, {current_tasks}
    WHERE w.org_id = %(org_id)s AND w.current_task_id < %(before_id)s
), {checked}
{page_of_tasks};
