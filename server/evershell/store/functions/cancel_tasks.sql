-- Records the intent to cancel each of these tasks, and its event, in one transaction and one round
-- trip. Returns the tasks whose cancellation is recorded now: `accepted`, or `already_requested` if
-- it was recorded before. The change is that of request_cancel in
-- server/evershell/core/task_lifecycle.py.
--
-- A task is left out if it has ended, if its workspace is not up or not covered, or if another
-- transaction has locked the workspace. With p_wait the function waits for that transaction
-- instead. Then it must be called with one task only: a transaction that waits for a lock and has
-- none cannot take part in a deadlock.
--
-- `watched` says whether other processes may have subscribers for the workspace. Stores p_audit,
-- the call's entry of the audit log, unless it is NULL or stored already.
--
-- Under READ COMMITTED each statement sees what was committed before it started. The tasks are read
-- in a statement after the one that locks their workspaces, so they are read as they are under the
-- locks.
CREATE OR REPLACE FUNCTION cancel_tasks(
    p_org_id text,
    p_own_only boolean,
    p_user_id text,
    p_task_ids text[],
    p_requested_by text,
    p_credential_kind text,
    p_requested_at timestamptz,
    p_reason text,
    p_request_id text,
    p_force_at timestamptz,
    p_trace_id text,
    p_payload jsonb,
    p_wait boolean,
    p_audit json,
    OUT workspace_id text,
    OUT task_id text,
    OUT outcome text,
    OUT watched boolean
) RETURNS SETOF record LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked_ids text[];
    accepted_ids text[];
BEGIN
    IF p_wait THEN
        PERFORM FROM workspaces w
        WHERE w.org_id = p_org_id AND w.current_task_id = ANY (p_task_ids)
        FOR UPDATE;
    END IF;
    SELECT array_agg(locked.id) INTO locked_ids FROM (
        SELECT w.id FROM workspaces w
        WHERE w.org_id = p_org_id
            AND w.current_task_id = ANY (p_task_ids)
            AND w.status IN ('idle', 'busy')
            -- An API key has no user (NULL), and no creator matches NULL.
            AND (NOT p_own_only OR w.created_by_user_id = p_user_id)
        ORDER BY w.id
        FOR UPDATE SKIP LOCKED
    ) locked;
    WITH cancelled AS (
        UPDATE tasks
        SET cancel_requested_by = p_requested_by,
            cancel_credential_kind = p_credential_kind,
            cancel_requested_at = p_requested_at,
            cancel_reason = p_reason,
            cancel_request_id = p_request_id,
            cancel_force_at = p_force_at,
            cancel_force_requested_by = CASE WHEN p_force_at IS NOT NULL THEN p_requested_by END
        WHERE tasks.id = ANY (p_task_ids)
            AND tasks.workspace_id = ANY (locked_ids)
            AND tasks.status IN ('submitted', 'delivered', 'running')
            AND tasks.cancel_requested_at IS NULL
        RETURNING tasks.id, tasks.workspace_id
    ), counted AS (
        UPDATE workspaces
        SET last_seq = workspaces.last_seq + 1
        FROM cancelled
        WHERE workspaces.id = cancelled.workspace_id
        RETURNING workspaces.id AS workspace_id, workspaces.last_seq, cancelled.id AS task_id
    ), logged AS (
        INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, trace_id, payload)
        SELECT
            counted.workspace_id, counted.last_seq, 'task_cancel_requested', p_requested_at,
            counted.task_id, p_request_id, p_trace_id, p_payload
        FROM counted
        RETURNING events.task_id
    )
    SELECT array_agg(logged.task_id) INTO accepted_ids FROM logged;
    UPDATE tasks
    SET cancel_force_at = p_force_at, cancel_force_requested_by = p_requested_by
    WHERE tasks.id = ANY (p_task_ids)
        AND tasks.workspace_id = ANY (locked_ids)
        AND tasks.cancel_requested_at IS NOT NULL
        AND p_force_at < coalesce(tasks.cancel_force_at, 'infinity');
    IF p_audit IS NOT NULL THEN
        INSERT INTO audit_entries
        SELECT (json_populate_record(NULL::audit_entries, p_audit)).*
        ON CONFLICT (id) DO NOTHING;
    END IF;
    RETURN QUERY
    SELECT
        w.id,
        w.current_task_id,
        CASE WHEN w.current_task_id = ANY (accepted_ids) THEN 'accepted'
        ELSE 'already_requested' END,
        coalesce(w.watched_until > p_requested_at, false)
    FROM workspaces w WHERE w.id = ANY (locked_ids);
END;
$$;
