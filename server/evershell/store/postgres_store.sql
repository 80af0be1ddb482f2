-- Workspaces, tasks and events.
--
-- Statements name their columns, so that prepared statements still work after a later migration has
-- added a column.

-- name: lock_workspace
-- Begins a change of a workspace.
SELECT {workspace}, watched_until FROM workspaces WHERE id = %(workspace_id)s FOR UPDATE;

-- name: current_task
-- A separate statement after the lock. Under READ COMMITTED, the statement that waits for the lock
-- would read the tasks as they were before it waited.
SELECT {whole_task} FROM tasks
WHERE id = (SELECT current_task_id FROM workspaces WHERE id = %(workspace_id)s);

-- name: extend_lease
UPDATE workspaces
SET lease_expires_at = extended_lease(workspaces, %(now)s, %(lease_seconds)s)
WHERE id = %(workspace_id)s
RETURNING lease_expires_at;

-- name: renew_leases
SELECT /* renew_leases */ seconds_left, {(w).workspace}, {(t).task}
FROM renew_leases(%(ids)s, %(epochs)s, %(lease_seconds)s, %(below_share)s, %(now)s);

-- name: get_workspace
-- With NULL for `org_id`, any organization matches.
SELECT {workspace} FROM workspaces
WHERE id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);

-- name: list_workspaces
WITH newest AS (
    SELECT {workspace}, org_id AS scan_key, id AS scan_id FROM workspaces
    WHERE org_id = ANY (ARRAY[%(org_id)s::text]) AND id < %(before_id)s
    ORDER BY org_id DESC, id DESC
    LIMIT {scanned}
), checked AS (SELECT *, true AS matches FROM newest)
{page};

-- name: list_own_workspaces
-- Uses the index workspaces_of_creator.
WITH newest AS (
    SELECT {workspace}, org_id AS scan_key, id AS scan_id FROM workspaces
    WHERE org_id = ANY (ARRAY[%(org_id)s::text]) AND id < %(before_id)s
        AND created_by_user_id = %(user_id)s
    ORDER BY org_id DESC, id DESC
    LIMIT {scanned}
), checked AS (SELECT *, true AS matches FROM newest)
{page};

-- name: add_card
INSERT INTO agent_cards (workspace_id, description, skills, is_public)
VALUES (%(workspace_id)s, %(description)s, %(skills)s, %(is_public)s);

-- name: get_card
-- A workspace without a row has an empty card.
SELECT {w.workspace}, c.description AS card_description, c.skills AS card_skills,
    c.is_public AS card_is_public
FROM workspaces w LEFT JOIN agent_cards c ON c.workspace_id = w.id
WHERE w.id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);

-- name: get_task
SELECT {task} FROM tasks WHERE id = %(task_id)s AND workspace_id = %(workspace_id)s;

-- name: get_workspace_with_task
SELECT {w.workspace}, {t.task}
FROM workspaces w LEFT JOIN tasks t ON t.id = %(task_id)s AND t.workspace_id = w.id
WHERE w.id = %(workspace_id)s AND org_id = coalesce(%(org_id)s, org_id);

-- name: lock_tree
-- Locks the tree of the parent of a task that is submitted.
SELECT lock_tree(%(org_id)s, %(task_id)s);

-- name: get_parent
-- Reads the parent with its workspace, as committed before lock_tree took the lock. Does not call
-- root_of(t), which would read the whole row with its texts.
SELECT {w.workspace}, {t.task}, (
    SELECT count(*) FROM tasks d
    WHERE d.ancestor_ids IS NOT NULL AND d.ancestor_ids[1] = coalesce(t.ancestor_ids[1], t.id) AND is_open(d)
) AS open_descendants
FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
WHERE w.org_id = %(org_id)s AND t.id = %(task_id)s;

-- name: list_events
-- A batch ends early if its payloads are large. Returns no row if the workspace does not exist, and one
-- row without a `seq` at the end of the log.
SELECT {e.event}
FROM workspaces w LEFT JOIN LATERAL (
    SELECT {event}, sum(octet_length(payload::text)) OVER (
        ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes
    FROM events
    WHERE workspace_id = w.id AND seq > %(after_seq)s
    ORDER BY seq
    LIMIT %(limit)s
) e ON coalesce(bytes, 0) < {max_batch_bytes}
WHERE w.id = %(workspace_id)s
ORDER BY e.seq;
