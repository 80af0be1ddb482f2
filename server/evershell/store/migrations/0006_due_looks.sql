-- depends: 0004_task_unnamed_since

-- What the fleet controller looks at every second. No index contains lease_expires_at, so that a
-- heartbeat updates its row in place (HOT).
CREATE INDEX workspaces_unsettled ON workspaces (id)
WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL;
