-- depends: 0013_task_limits

-- The rule that the agent of a workspace broke, and how much the agent of a task has committed.
ALTER TABLE workspaces ADD COLUMN agent_breach text;
ALTER TABLE tasks ADD COLUMN committed_bytes bigint NOT NULL DEFAULT 0;

-- The fleet controller ends these pods.
CREATE INDEX workspaces_breached ON workspaces (id) WHERE agent_breach IS NOT NULL;
