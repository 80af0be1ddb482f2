-- depends: 0004_task_unnamed_since

-- Until when some process has subscribers for the workspace. A process that commits a change of the
-- workspace notifies the other processes only until then. No index has this column, so that setting
-- it is a heap-only update.
ALTER TABLE workspaces ADD COLUMN watched_until timestamptz;
