-- depends: 0011_org_holds

-- Who submitted a task, also for the tasks that run now. A worker of the previous version leaves it
-- empty.
ALTER TABLE tasks ADD COLUMN submitted_by text COLLATE "C" NOT NULL DEFAULT '';
UPDATE tasks SET submitted_by = coalesce(events.payload ->> 'submitted_by', '')
FROM events
WHERE events.workspace_id = tasks.workspace_id AND events.task_id = tasks.id
    AND events.type = 'task_submitted' AND tasks.status IN ('submitted', 'delivered', 'running');

-- The tasks of an organization that have not ended, oldest first. A cancellation changes no column
-- of it, so that its updates stay in place (HOT).
CREATE INDEX workspaces_with_task ON workspaces (org_id, current_task_id)
WHERE current_task_id IS NOT NULL;
