-- Records the intents of several requests, in their order, in one transaction and one round trip.
--
-- p_requests is an array of objects. Returns one row of record_cancellation_or_skip for each
-- request, in the same order. It waits for no other transaction that has locked a workspace.
CREATE OR REPLACE FUNCTION record_cancellations(
    p_requests json,
    OUT skipped boolean,
    OUT recorded boolean,
    OUT w workspaces,
    OUT t tasks
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    request record;
BEGIN
    FOR request IN
        SELECT * FROM json_to_recordset(p_requests) AS requests (
            org_id text,
            own_only boolean,
            user_id text,
            workspace_id text,
            task_id text,
            requested_by text,
            credential_kind text,
            requested_at timestamptz,
            reason text,
            request_id text,
            force_at timestamptz,
            trace_id text,
            payload jsonb,
            audit json
        )
    LOOP
        RETURN QUERY SELECT * FROM record_cancellation_or_skip(
            request.org_id,
            request.own_only,
            request.user_id,
            request.workspace_id,
            request.task_id,
            request.requested_by,
            request.credential_kind,
            request.requested_at,
            request.reason,
            request.request_id,
            request.force_at,
            request.trace_id,
            request.payload,
            false,
            request.audit
        );
    END LOOP;
END;
$$;
