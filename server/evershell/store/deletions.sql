-- The removal of workspaces, and the records of removed workspaces.

-- name: remove_workspace
SELECT remove_workspace(%(workspace_id)s, %(limit)s, %(now)s, %(waits_since)s) AS result;

-- name: find_deleted_workspace
SELECT id, org_id, name, status_reason, created_by_user_id, created_at, updated_at, epoch
FROM deleted_workspaces
WHERE id = %(workspace_id)s AND org_id = %(org_id)s;
