-- Locks the tree of a task until the end of the transaction. Locks nothing if the organization has
-- no such task. A transaction needs this lock to submit a child into the tree or to cancel the
-- tree. It takes the lock before it locks any workspace, so that it cannot take part in a deadlock.
--
-- The lock is an advisory lock on the hash of the root's id. Trees with the same hash share a lock,
-- which is harmless. The first number of the lock is arbitrary.
CREATE OR REPLACE FUNCTION lock_tree(p_org_id text, p_task_id text) RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT pg_advisory_xact_lock(1702261362, hashtext(root_of(t)))
    FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
    WHERE t.id = p_task_id AND w.org_id = p_org_id
$$;
