-- record_cancellation_or_skip with p_wait, as workers of the previous version call it.
CREATE OR REPLACE FUNCTION record_cancellation(
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
DECLARE
    found_state record;
BEGIN
    SELECT * INTO found_state FROM record_cancellation_or_skip(
        p_org_id,
        p_own_only,
        p_user_id,
        p_workspace_id,
        p_task_id,
        p_requested_by,
        p_credential_kind,
        p_requested_at,
        p_reason,
        p_request_id,
        p_force_at,
        p_payload,
        true,
        NULL
    );
    recorded := found_state.recorded;
    w := found_state.w;
    t := found_state.t;
END;
$$;
