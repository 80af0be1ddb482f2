-- depends: 0003_who_forces

-- Since when the agent's heartbeats have not named the current task. The fleet controller ends an agent that lost its task.
ALTER TABLE workspaces ADD COLUMN task_unnamed_since timestamptz;
