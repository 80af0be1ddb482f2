-- Locks the tree of a task of the organization until the end of the transaction, or nothing if there
-- is no such task. A child is submitted, and a tree is cancelled, under this lock. A transaction takes
-- it before the row of any workspace, so that it cannot take part in a deadlock.
--
-- It is an advisory lock, with the root in the place of the tree. Trees whose roots have the same hash
-- share a lock, which is harmless. The class is an arbitrary number.
CREATE OR REPLACE FUNCTION lock_tree(p_org_id text, p_task_id text) RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT pg_advisory_xact_lock(1702261362, hashtext(root_of(t)))
    FROM tasks t JOIN workspaces w ON w.id = t.workspace_id
    WHERE t.id = p_task_id AND w.org_id = p_org_id
$$;
