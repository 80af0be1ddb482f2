-- Records the intent to cancel each of these tasks, and its event, in one transaction and one round
-- trip. This is record_cancellation for many tasks. Returns the tasks whose outcome is `accepted`
-- or `already_requested`.
--
-- A task is left out if it has another outcome, if it is no longer the current task of its
-- workspace, or if another transaction has locked the workspace. With p_wait, the function waits
-- for that transaction instead. It must then be called with only one task: a transaction that waits
-- only for its first lock cannot take part in a deadlock.
--
-- `watched` says whether other processes may have subscribers for the workspace. Stores the call's
-- audit entry, unless it is NULL or stored already.
--
-- Under READ COMMITTED each statement sees what was committed before it started. One statement
-- locks the workspaces, and a later statement reads the tasks, so that it sees the tasks as they
-- are under the locks.
CREATE OR REPLACE FUNCTION cancel_tasks(
    p_request cancellation_request,
    p_task_ids text[],
    p_wait boolean,
    OUT workspace_id text,
    OUT task_id text,
    OUT outcome text,
    OUT watched boolean
) RETURNS SETOF record LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked_ids text[];
BEGIN
    IF p_wait THEN
        PERFORM FROM workspaces w
        WHERE w.org_id = p_request.org_id AND w.current_task_id = ANY (p_task_ids)
        FOR UPDATE;
    END IF;
    SELECT array_agg(locked.id) INTO locked_ids FROM (
        SELECT w.id FROM workspaces w
        WHERE w.org_id = p_request.org_id AND w.current_task_id = ANY (p_task_ids)
        ORDER BY w.id
        FOR UPDATE SKIP LOCKED
    ) locked;
    RETURN QUERY
    WITH decided AS (
        SELECT
            w.id AS workspace_id, t.id AS task_id, w.watched_until,
            cancellation_outcome(w, t, true, p_request.own_only, p_request.user_id) AS outcome,
            is_forced_earlier(t, p_request.force_at) AS is_forced_earlier
        FROM workspaces w JOIN tasks t ON t.id = w.current_task_id
        WHERE w.id = ANY (locked_ids)
    ), cancelled AS (
        UPDATE tasks
        SET cancel_requested_by = p_request.requested_by,
            cancel_credential_kind = p_request.credential_kind,
            cancel_requested_at = p_request.requested_at,
            cancel_reason = p_request.reason,
            cancel_request_id = p_request.request_id,
            cancel_force_at = p_request.force_at,
            cancel_force_requested_by = p_request.force_requested_by
        FROM decided
        WHERE tasks.id = decided.task_id AND decided.outcome = 'accepted'
        RETURNING tasks.id, tasks.workspace_id
    ), forced AS (
        UPDATE tasks
        SET cancel_force_at = p_request.force_at,
            cancel_force_requested_by = p_request.force_requested_by
        FROM decided
        WHERE tasks.id = decided.task_id
            AND decided.outcome = 'already_requested' AND decided.is_forced_earlier
    ), counted AS (
        UPDATE workspaces
        SET last_seq = workspaces.last_seq + 1
        FROM cancelled
        WHERE workspaces.id = cancelled.workspace_id
        RETURNING workspaces.id AS workspace_id, workspaces.last_seq, cancelled.id AS task_id
    ), logged AS (
        INSERT INTO events (
            workspace_id, seq, type, time, task_id, request_id, trace_id, payload, position
        )
        SELECT
            counted.workspace_id, counted.last_seq, 'task_cancel_requested',
            p_request.requested_at, counted.task_id, p_request.request_id, p_request.trace_id,
            p_request.payload,
            CASE WHEN p_request.takes_position THEN nextval('event_positions') END
        FROM counted
    ), audited AS (
        INSERT INTO audit_entries
        SELECT entry.* FROM json_populate_record(NULL::audit_entries, p_request.audit) AS entry
        WHERE p_request.audit IS NOT NULL
        ON CONFLICT (id) DO NOTHING
    )
    SELECT
        decided.workspace_id, decided.task_id, decided.outcome,
        coalesce(decided.watched_until > p_request.requested_at, false)
    FROM decided WHERE decided.outcome IN ('accepted', 'already_requested');
END;
$$;
