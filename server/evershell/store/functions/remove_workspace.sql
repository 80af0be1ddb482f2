-- Removes a part of a workspace that is `deleting`: at most p_limit events, as many deliveries, and
-- as many tasks. The last call also replaces the workspace by a record in deleted_workspaces.
-- Returns
--   more     if a further call must remove the rest,
--   removed  after the last part, and if there is no such workspace,
--   waiting  if a delivery is pending, or the reader of webhooks has not read the last event yet, and
--            the workspace has changed after p_waits_since. Nothing is then removed.
--
-- The function waits for the lock of the workspace, and for locks of rows of events and
-- webhook_deliveries. remove_old_tasks may remove events at the same time; until its transaction has
-- ended, the function goes no further than the events. A transaction that has locked a row of
-- webhook_deliveries waits for other such rows for 0.5 s at most.
CREATE OR REPLACE FUNCTION remove_workspace(
    p_workspace_id text,
    p_limit integer,
    p_now timestamptz,
    p_waits_since timestamptz
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    w workspaces;
    task_ids text[];
BEGIN
    SELECT * INTO w FROM workspaces WHERE id = p_workspace_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'removed';
    END IF;
    ASSERT w.status = 'deleting' AND w.run_id IS NULL AND w.current_task_id IS NULL;
    IF w.updated_at > p_waits_since AND (
        EXISTS (SELECT FROM webhook_deliveries WHERE workspace_id = w.id AND due_at IS NOT NULL)
        OR EXISTS (
            SELECT FROM events e
            WHERE e.workspace_id = w.id AND e.seq = w.last_seq
                AND e.position > (SELECT position FROM log_readers WHERE name = 'webhooks')
                AND e.position > (SELECT min(after_position) FROM webhooks)
        )
    ) THEN
        RETURN 'waiting';
    END IF;
    DELETE FROM events
    WHERE workspace_id = w.id
        AND seq < (SELECT min(seq) FROM events WHERE workspace_id = w.id) + p_limit;
    -- min() uses the primary key, where EXISTS could scan the whole table.
    IF (SELECT min(seq) FROM events WHERE workspace_id = w.id) IS NOT NULL THEN
        RETURN 'more';
    END IF;
    DELETE FROM webhook_deliveries WHERE (workspace_id, task_id, webhook_id) IN (
        SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries
        WHERE workspace_id = w.id LIMIT p_limit
    );
    IF (SELECT min(task_id) FROM webhook_deliveries WHERE workspace_id = w.id) IS NOT NULL THEN
        RETURN 'more';
    END IF;
    task_ids := ARRAY(SELECT id FROM tasks WHERE workspace_id = w.id ORDER BY id LIMIT p_limit);
    DELETE FROM webhooks WHERE task_id = ANY (task_ids);
    DELETE FROM tasks WHERE id = ANY (task_ids);
    IF cardinality(task_ids) = p_limit THEN
        RETURN 'more';
    END IF;
    INSERT INTO deleted_workspaces (
        id, org_id, name, status_reason, created_by_user_id, created_at, updated_at, epoch,
        deleted_at
    )
    VALUES (
        w.id, w.org_id, w.name, w.status_reason, w.created_by_user_id, w.created_at, w.updated_at,
        w.epoch, p_now
    );
    DELETE FROM workspaces WHERE id = w.id;
    RETURN 'removed';
END;
$$;
