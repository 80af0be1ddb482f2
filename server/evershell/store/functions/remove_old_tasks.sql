-- Removes the oldest events of a workspace, with the tasks to which they belong. Stops at the first
-- event that must stay.
--
-- An event of a task stays if the task did not end before p_before, if another task of its tree has
-- not ended, or if one of the task's events must still be delivered to a webhook. An event of the
-- workspace itself stays if its time is not before p_before, or if any of the workspace's own
-- events must still be delivered.
--
-- Looks at the first p_limit events after p_after_seq. The caller passes the last_seq of the
-- previous call, so that the index entries of removed events are not read again. The row of a task
-- is removed with the first of its events, so the other events may remain until the next call.
--
-- Neither reads nor locks the row of the workspace, so cancellations do not wait for this function.
CREATE OR REPLACE FUNCTION remove_old_tasks(
    p_workspace_id text,
    p_before timestamptz,
    p_after_seq bigint,
    p_limit integer,
    OUT task_count integer,
    OUT event_count integer,
    OUT last_seq bigint
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    first_kept bigint;
    old_ids text[];
BEGIN
    -- The commit does not wait for the disk, because a removal that is lost in a crash is repeated.
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH first AS MATERIALIZED (
        SELECT seq, time, coalesce(task_id, '') AS task_id FROM events
        WHERE workspace_id = p_workspace_id AND seq > p_after_seq
        ORDER BY seq LIMIT p_limit
    ), kept AS (
        SELECT named.task_id FROM (SELECT DISTINCT task_id FROM first) named
        WHERE EXISTS (
            SELECT FROM webhook_deliveries
            WHERE workspace_id = p_workspace_id AND task_id = named.task_id AND due_at IS NOT NULL
        ) OR EXISTS (
            SELECT FROM tasks t WHERE t.id = named.task_id AND (
                coalesce(t.completed_at >= p_before, true)
                OR EXISTS (
                    SELECT FROM tasks root
                    WHERE root.id = t.ancestor_ids[1] AND root.completed_at IS NULL
                )
                OR EXISTS (
                    -- Does not call root_of(t), which would read the whole row with its texts.
                    SELECT FROM tasks d
                    WHERE d.ancestor_ids[1] = coalesce(t.ancestor_ids[1], t.id)
                        AND d.ancestor_ids IS NOT NULL AND is_open(d)
                )
            )
        )
    )
    SELECT coalesce(min(seq) FILTER (WHERE stays), max(seq) + 1) INTO first_kept
    FROM (
        SELECT seq, task_id IN (SELECT task_id FROM kept) OR (task_id = '' AND time >= p_before) AS stays
        FROM first
    ) checked;

    WITH removed AS (
        DELETE FROM events
        WHERE workspace_id = p_workspace_id AND seq > p_after_seq AND seq < first_kept
        RETURNING seq, task_id
    )
    SELECT count(*), coalesce(max(seq), p_after_seq), array_agg(DISTINCT task_id)
    INTO event_count, last_seq, old_ids FROM removed;
    DELETE FROM tasks WHERE id = ANY (old_ids);
    GET DIAGNOSTICS task_count = ROW_COUNT;
    IF task_count > 0 THEN
        DELETE FROM webhook_deliveries
        WHERE workspace_id = p_workspace_id AND task_id = ANY (old_ids);
        DELETE FROM webhooks WHERE task_id = ANY (old_ids);
    END IF;
END;
$$;
