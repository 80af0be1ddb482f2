-- Records the intent to cancel a task, and its event, in one transaction and one round trip.
--
-- Returns the workspace and the task as they are under the lock. The conditions are those of
-- Store.record_cancellation in server/evershell/core/ports.py. The change is that of request_cancel in
-- server/evershell/core/task_lifecycle.py. The contract suite of the store compares the two.
--
-- If another transaction has locked the workspace, the function waits for it if p_wait, and
-- otherwise records nothing and returns true for `skipped`. Calls of one transaction that do not
-- wait cannot take part in a deadlock.
--
-- Stores p_audit, the call's entry of the audit log, with its outcome, unless it is NULL or the
-- request was skipped. The outcomes, and their order, are those of outcome_of in
-- server/evershell/core/cancel_task.py. The contract suite compares the two.
--
-- Under READ COMMITTED each statement sees what was committed before it started. The task is read
-- in a statement after the one that locks its workspace, so it is read as it is under the lock.
CREATE OR REPLACE FUNCTION record_cancellation_or_skip(
    p_org_id text,
    p_own_only boolean,
    p_user_id text,
    p_workspace_id text,
    p_task_id text,
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
    OUT skipped boolean,
    OUT recorded boolean,
    OUT w workspaces,
    OUT t tasks
) LANGUAGE plpgsql AS $$
DECLARE
    outcome text;
    entry audit_entries;
BEGIN
    skipped := false;
    recorded := false;
    IF p_wait THEN
        SELECT * INTO w FROM workspaces
        WHERE id = p_workspace_id AND org_id = p_org_id
        FOR UPDATE;
    ELSE
        SELECT * INTO w FROM workspaces
        WHERE id = p_workspace_id AND org_id = p_org_id
        FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            skipped := EXISTS (
                SELECT FROM workspaces WHERE id = p_workspace_id AND org_id = p_org_id
            );
        END IF;
    END IF;
    IF skipped THEN
        RETURN;
    END IF;
    IF w.id IS NOT NULL THEN
        SELECT * INTO t FROM tasks
        WHERE id = coalesce(p_task_id, w.current_task_id) AND workspace_id = w.id;
    END IF;
    outcome := CASE
        WHEN w.id IS NULL THEN 'workspace_not_found'
        -- An API key has no user (NULL), and no creator matches NULL.
        WHEN p_own_only AND (w.created_by_user_id = p_user_id) IS NOT TRUE THEN 'permission_denied'
        WHEN p_task_id IS NOT NULL AND t.id IS NULL THEN 'task_not_found'
        WHEN t.status IN ('completed', 'failed', 'cancelled', 'delivery_failed')
            THEN 'already_finished'
        WHEN w.status = 'provisioning' THEN 'workspace_provisioning'
        WHEN w.status IN ('stopping', 'stopped') THEN 'workspace_stopped'
        WHEN w.status = 'failed' THEN 'workspace_failed'
        WHEN t.id IS NULL THEN 'no_active_task'
        WHEN t.cancel_requested_at IS NOT NULL THEN 'already_requested'
        ELSE 'accepted'
    END;
    IF outcome = 'already_requested' AND p_force_at < coalesce(t.cancel_force_at, 'infinity') THEN
        UPDATE tasks
        SET cancel_force_at = p_force_at, cancel_force_requested_by = p_requested_by
        WHERE id = t.id
        RETURNING * INTO t;
    END IF;
    IF outcome = 'accepted' THEN
        UPDATE tasks
        SET cancel_requested_by = p_requested_by,
            cancel_credential_kind = p_credential_kind,
            cancel_requested_at = p_requested_at,
            cancel_reason = p_reason,
            cancel_request_id = p_request_id,
            cancel_force_at = p_force_at,
            cancel_force_requested_by = CASE WHEN p_force_at IS NOT NULL THEN p_requested_by END
        WHERE id = t.id
        RETURNING * INTO t;
        w.last_seq := w.last_seq + 1;
        UPDATE workspaces SET last_seq = w.last_seq WHERE id = w.id;
        INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, trace_id, payload)
        VALUES (
            w.id, w.last_seq, 'task_cancel_requested', p_requested_at, t.id, p_request_id,
            p_trace_id, p_payload
        );
        recorded := true;
    END IF;
    IF p_audit IS NOT NULL THEN
        entry := json_populate_record(NULL::audit_entries, p_audit);
        entry.outcome := outcome;
        entry.task_id := coalesce(t.id, entry.task_id);
        -- The entry may be stored already, as that of a call that was given up.
        INSERT INTO audit_entries SELECT entry.* ON CONFLICT (id) DO NOTHING;
    END IF;
END;
$$;
