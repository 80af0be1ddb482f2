-- The removal of old tasks. functions/remove_old_tasks.sql has the rules.

-- name: list_old_logs
-- Reads the first event of each workspace by the primary key of the events.
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
-- The ids of tasks begin with the time, so the first ended task by id ended about first.
SELECT completed_at FROM tasks WHERE completed_at IS NOT NULL ORDER BY id LIMIT 1;
