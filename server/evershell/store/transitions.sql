-- Changes of a workspace and its task.
--
-- Statements name their columns, so that prepared statements still work after a later migration has
-- added a column.

-- name: lock_workspace
SELECT {workspace}, watched_until FROM workspaces WHERE id = %(workspace_id)s FOR UPDATE;

-- name: lock_idle
-- Locks the workspaces that have no task and that no other transaction has locked. Leaves out the others,
-- so that a transaction with several locks waits for none.
SELECT {workspace}, watched_until FROM workspaces
WHERE org_id = %(org_id)s AND id = ANY (%(workspace_ids)s) AND current_task_id IS NULL
ORDER BY id
FOR UPDATE SKIP LOCKED;

-- name: current_task
-- A separate statement after the lock. Under READ COMMITTED, the statement that waits for the lock
-- would read the task as it was before the wait.
SELECT {whole_task} FROM tasks
WHERE id = (SELECT current_task_id FROM workspaces WHERE id = %(workspace_id)s);

-- name: extend_lease
UPDATE workspaces
SET lease_expires_at = extended_lease(workspaces, %(now)s, %(lease_seconds)s)
WHERE id = %(workspace_id)s
RETURNING lease_expires_at;

-- name: lock_tree
-- Locks the tree into which a task is submitted. The parameter is the id of its parent.
SELECT lock_tree(%(org_id)s, %(task_id)s);

-- name: get_parent
-- A separate statement after the lock, so that it sees what was committed before the lock was
-- taken. Does not call root_of(t), which would read the whole row with its texts.
SELECT {w.workspace}, {t.task}, (
    SELECT count(*) FROM tasks d
    WHERE d.ancestor_ids IS NOT NULL AND d.ancestor_ids[1] = coalesce(t.ancestor_ids[1], t.id) AND is_open(d)
) AS open_descendants
FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
WHERE w.org_id = %(org_id)s AND t.id = %(task_id)s;
