-- Records the intent to cancel a task, and its event, if cancellation_outcome accepts the request,
-- in one transaction and one round trip. If an intent is recorded already, only its force deadline
-- can change, to an earlier one. Returns the outcome, and the workspace and the task as they are
-- under the lock.
--
-- If another transaction has locked the workspace, the function waits for that transaction if
-- p_wait is true. If p_wait is false, it records nothing and returns NULL for the outcome. A
-- transaction that does not wait for locks cannot take part in a deadlock.
--
-- If the request has an audit entry, the entry is stored with the outcome, unless the outcome is
-- NULL.
--
-- Under READ COMMITTED each statement sees what was committed before it started. One statement
-- locks the workspace, and a later statement reads the task, so that it sees the task as it is
-- under the lock. The function must be VOLATILE: in a STABLE function, all statements would see the
-- same snapshot.
CREATE OR REPLACE FUNCTION record_cancellation(
    p_request cancellation_request,
    p_wait boolean,
    OUT outcome text,
    OUT w workspaces,
    OUT t tasks
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    entry audit_entries;
BEGIN
    IF p_wait THEN
        SELECT * INTO w FROM workspaces
        WHERE id = p_request.workspace_id AND org_id = p_request.org_id
        FOR UPDATE;
    ELSE
        SELECT * INTO w FROM workspaces
        WHERE id = p_request.workspace_id AND org_id = p_request.org_id
        FOR UPDATE SKIP LOCKED;
        IF NOT FOUND AND EXISTS (
            SELECT FROM workspaces
            WHERE id = p_request.workspace_id AND org_id = p_request.org_id
        ) THEN
            RETURN;
        END IF;
    END IF;
    IF w.id IS NOT NULL THEN
        SELECT * INTO t FROM tasks
        WHERE id = coalesce(p_request.task_id, w.current_task_id) AND workspace_id = w.id;
    END IF;
    outcome := cancellation_outcome(
        w, t, p_request.task_id IS NOT NULL, p_request.own_only, p_request.user_id
    );
    IF outcome = 'accepted' THEN
        UPDATE tasks
        SET cancel_requested_by = p_request.requested_by,
            cancel_credential_kind = p_request.credential_kind,
            cancel_requested_at = p_request.requested_at,
            cancel_reason = p_request.reason,
            cancel_request_id = p_request.request_id,
            cancel_force_at = p_request.force_at,
            cancel_force_requested_by = p_request.force_requested_by
        WHERE id = t.id
        RETURNING * INTO t;
        w.last_seq := w.last_seq + 1;
        UPDATE workspaces SET last_seq = w.last_seq WHERE id = w.id;
        INSERT INTO events (
            workspace_id, seq, type, time, task_id, request_id, trace_id, payload, position
        )
        VALUES (
            w.id, w.last_seq, 'task_cancel_requested', p_request.requested_at, t.id,
            p_request.request_id, p_request.trace_id, p_request.payload,
            CASE WHEN p_request.takes_position THEN nextval('event_positions') END
        );
    ELSIF outcome = 'already_requested' AND is_forced_earlier(t, p_request.force_at) THEN
        UPDATE tasks
        SET cancel_force_at = p_request.force_at,
            cancel_force_requested_by = p_request.force_requested_by
        WHERE id = t.id
        RETURNING * INTO t;
    END IF;
    IF p_request.audit IS NOT NULL THEN
        entry := json_populate_record(NULL::audit_entries, p_request.audit);
        entry.outcome := outcome;
        entry.task_id := coalesce(t.id, entry.task_id);
        -- If the call was given up, the entry may be stored already. ON CONFLICT does not name an
        -- index, because each statement would then have to look up the index of the partition.
        INSERT INTO audit_entries SELECT entry.* ON CONFLICT DO NOTHING;
    END IF;
END;
$$;
