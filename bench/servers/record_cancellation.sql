-- What the durable floor runs: one statement that records everything a cancellation must record.
--
-- This is an old copy of the service's function. It is not updated with the service: otherwise, a
-- change of the service would also change the floor with which the service is compared.
CREATE OR REPLACE FUNCTION bench_record_cancellation(
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
    p_payload jsonb,
    OUT recorded boolean,
    OUT w workspaces,
    OUT t tasks
) LANGUAGE plpgsql AS $$
BEGIN
    recorded := false;
    SELECT * INTO w FROM workspaces WHERE id = p_workspace_id AND org_id = p_org_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO t FROM tasks
    WHERE id = coalesce(p_task_id, w.current_task_id) AND workspace_id = w.id;
    IF NOT FOUND
        OR t.status IN ('completed', 'failed', 'cancelled', 'delivery_failed')
        OR w.status NOT IN ('idle', 'busy')
        -- For an API key, p_user_id is NULL, so no creator matches.
        OR (p_own_only AND (w.created_by_user_id = p_user_id) IS NOT TRUE)
    THEN
        RETURN;
    END IF;
    IF t.cancel_requested_at IS NOT NULL THEN
        IF p_force_at < coalesce(t.cancel_force_at, 'infinity') THEN
            UPDATE tasks
            SET cancel_force_at = p_force_at, cancel_force_requested_by = p_requested_by
            WHERE id = t.id
            RETURNING * INTO t;
        END IF;
        RETURN;
    END IF;
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
    INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload)
    VALUES (
        w.id, w.last_seq, 'task_cancel_requested', p_requested_at, t.id, p_request_id, p_payload
    );
    recorded := true;
END;
$$;
