-- The tables of the floor, and the statement of the durable floor.
--
-- The floor stores what a cancellation must record, and nothing else: each table has a primary key
-- and no other index, trigger or partition. It does not change with the service.
DROP SCHEMA IF EXISTS bench_floor CASCADE;
CREATE SCHEMA bench_floor;
SET search_path = bench_floor;

CREATE TABLE bench_rows (id text PRIMARY KEY, number bigint NOT NULL);

CREATE TABLE workspaces (
    id text PRIMARY KEY,
    org_id text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    status_reason text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    current_task_id text,
    epoch bigint NOT NULL,
    last_seq bigint NOT NULL,
    agent_address text,
    lease_expires_at timestamptz
);

CREATE TABLE tasks (
    id text PRIMARY KEY,
    workspace_id text NOT NULL,
    description text NOT NULL,
    metadata jsonb NOT NULL,
    max_iterations integer NOT NULL,
    status text NOT NULL,
    phase text NOT NULL,
    iterations integer NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    reason text NOT NULL,
    result text NOT NULL,
    forced boolean NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    model_calls bigint NOT NULL,
    tool_calls bigint NOT NULL,
    cancel_requested_by text,
    cancel_credential_kind text,
    cancel_requested_at timestamptz,
    cancel_reason text,
    cancel_request_id text
);

CREATE TABLE events (
    workspace_id text NOT NULL,
    seq bigint NOT NULL,
    type text NOT NULL,
    time timestamptz NOT NULL,
    task_id text,
    request_id text,
    payload jsonb NOT NULL,
    PRIMARY KEY (workspace_id, seq)
);

-- Records a cancellation: the intent of the task, the position of the log, and one event. Returns
-- the task's id; NULL if there is nothing to cancel.
CREATE FUNCTION record_cancellation(
    p_org_id text,
    p_workspace_id text,
    p_requested_by text,
    p_credential_kind text,
    p_requested_at timestamptz,
    p_reason text,
    p_request_id text,
    p_payload jsonb
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    w workspaces;
    t tasks;
BEGIN
    SELECT * INTO w FROM workspaces WHERE id = p_workspace_id AND org_id = p_org_id FOR UPDATE;
    IF NOT FOUND OR w.status NOT IN ('idle', 'busy') THEN
        RETURN NULL;
    END IF;
    SELECT * INTO t FROM tasks WHERE id = w.current_task_id;
    IF NOT FOUND OR t.status <> 'running' OR t.cancel_requested_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    UPDATE tasks
    SET cancel_requested_by = p_requested_by,
        cancel_credential_kind = p_credential_kind,
        cancel_requested_at = p_requested_at,
        cancel_reason = p_reason,
        cancel_request_id = p_request_id
    WHERE id = t.id;
    UPDATE workspaces SET last_seq = last_seq + 1 WHERE id = w.id;
    INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload)
    VALUES (
        w.id, w.last_seq + 1, 'task_cancel_requested', p_requested_at, t.id, p_request_id, p_payload
    );
    RETURN t.id;
END;
$$;
