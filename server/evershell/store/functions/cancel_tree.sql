-- Calls record_cancellation for a task, and cancel_tasks for its descendants that have not ended,
-- in one transaction and one round trip. If the caller may not cancel one of these tasks, the
-- function records only the audit entry, and returns permission_denied with the workspace of that
-- task.
--
-- Without a task id, the function cancels the task that is current once it has the locks. If the
-- current task has changed while the function waited for the locks, the new task may be in another
-- tree, so the function releases the locks and begins again. If there is no current task, no intent
-- is recorded. The timeout of the statement limits how often the function begins again.
--
-- `descendants` is what cancel_tasks returns, as a JSON array; NULL if it is empty.
--
-- The function takes the locks of several workspaces, in the order of their ids, and waits for
-- them. Other transactions do not wait for the lock of a workspace while they have the lock of
-- another, so a deadlock is impossible.
CREATE OR REPLACE FUNCTION cancel_tree(
    p_request cancellation_request,
    OUT outcome text,
    OUT w workspaces,
    OUT t tasks,
    OUT descendants json
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    named_id CONSTANT text := p_request.task_id;
    root_id text;
    open_ids text[];
    recorded record;
    entry audit_entries;
BEGIN
    LOOP
        SELECT * INTO w FROM workspaces
        WHERE id = p_request.workspace_id AND org_id = p_request.org_id;
        p_request.task_id := coalesce(named_id, w.current_task_id);
        EXIT WHEN p_request.task_id IS NULL;
        BEGIN
            PERFORM lock_tree(p_request.org_id, p_request.task_id);
            SELECT root_of(tasks) INTO root_id FROM tasks
            WHERE id = p_request.task_id AND workspace_id = p_request.workspace_id;
            open_ids := ARRAY(
                SELECT id FROM tasks
                WHERE ancestor_ids[1] = root_id AND p_request.task_id = ANY (ancestor_ids)
                    AND is_open(tasks)
            );
            PERFORM FROM workspaces
            WHERE org_id = p_request.org_id
                AND (id = p_request.workspace_id OR current_task_id = ANY (open_ids))
            ORDER BY id
            FOR UPDATE;
            EXIT WHEN named_id IS NOT NULL OR EXISTS (
                SELECT FROM workspaces
                WHERE id = p_request.workspace_id AND current_task_id = p_request.task_id
            );
            RAISE serialization_failure;
        EXCEPTION WHEN serialization_failure THEN
            -- The error has rolled back the block, which has released the locks.
        END;
    END LOOP;
    IF p_request.task_id IS NULL THEN
        outcome := cancellation_outcome(w, t, false, p_request.own_only, p_request.user_id);
    ELSE
        SELECT workspaces.* INTO w FROM workspaces JOIN tasks ON tasks.id = current_task_id
        WHERE org_id = p_request.org_id AND current_task_id = ANY (open_ids)
            AND cancellation_outcome(
                workspaces, tasks, true, p_request.own_only, p_request.user_id
            ) = 'permission_denied'
        LIMIT 1;
        IF FOUND THEN
            outcome := 'permission_denied';
        END IF;
    END IF;
    IF outcome IS NULL THEN
        SELECT * INTO recorded FROM record_cancellation(p_request, true);
        outcome := recorded.outcome;
        w := recorded.w;
        t := recorded.t;
        IF outcome IN ('accepted', 'already_requested', 'already_finished') THEN
            p_request.audit := NULL;
            SELECT json_agg(each) INTO descendants
            FROM cancel_tasks(p_request, open_ids, false) AS each;
        END IF;
    ELSIF p_request.audit IS NOT NULL THEN
        entry := json_populate_record(NULL::audit_entries, p_request.audit);
        entry.outcome := outcome;
        entry.task_id := coalesce(p_request.task_id, entry.task_id);
        INSERT INTO audit_entries SELECT entry.* ON CONFLICT DO NOTHING;
    END IF;
END;
$$;
