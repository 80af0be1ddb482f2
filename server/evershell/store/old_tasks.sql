-- The removal of old tasks. functions/remove_old_tasks.sql has the rules.

-- name: list_old_logs
-- Uses the primary key of the events to read the first event of each workspace.
SELECT
    id,
    coalesce(
        (SELECT time FROM events WHERE workspace_id = w.id ORDER BY seq LIMIT 1) < %(before)s, false
    ) AS is_old
FROM workspaces w
WHERE id > %(after_id)s
ORDER BY id
LIMIT %(limit)s;

-- name: remove_old_tasks
SELECT /* remove_old_tasks */ task_count, event_count, last_seq
FROM remove_old_tasks(%(workspace_id)s, %(before)s, %(after_seq)s, %(limit)s);

-- name: oldest_end
-- The id of a task begins with the time of its creation. Of the tasks that have ended, the one with
-- the lowest id is therefore about the first that ended.
SELECT completed_at FROM tasks WHERE completed_at IS NOT NULL ORDER BY id LIMIT 1;
