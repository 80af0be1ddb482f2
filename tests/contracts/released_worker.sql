-- The statements of the store of the previous version, with their columns.
-- schema: 0001_initial

-- name: lock_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since, agent_breach,
run_id, watched_until FROM workspaces WHERE id = %s FOR UPDATE

-- name: current_task
SELECT id AS task_id, workspace_id AS task_workspace_id, description AS task_description, metadata
AS task_metadata, max_iterations AS task_max_iterations, status AS task_status, phase AS task_phase,
iterations AS task_iterations, created_at AS task_created_at, started_at AS task_started_at,
completed_at AS task_completed_at, cancel_requested_by AS task_cancel_requested_by,
cancel_credential_kind AS task_cancel_credential_kind, cancel_requested_at AS
task_cancel_requested_at, cancel_reason AS task_cancel_reason, cancel_request_id AS
task_cancel_request_id, cancel_force_at AS task_cancel_force_at, cancel_force_requested_by AS
task_cancel_force_requested_by, reason AS task_reason, result AS task_result, forced AS task_forced,
input_tokens AS task_input_tokens, output_tokens AS task_output_tokens, model_calls AS
task_model_calls, tool_calls AS task_tool_calls, submitted_by AS task_submitted_by,
max_duration_seconds AS task_max_duration_seconds, max_total_tokens AS task_max_total_tokens,
limit_force_after_seconds AS task_limit_force_after_seconds, committed_bytes AS task_committed_bytes
FROM tasks WHERE id = (SELECT current_task_id FROM workspaces WHERE id = %s)

-- name: get_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since, agent_breach,
run_id FROM workspaces WHERE id = %s AND org_id = coalesce(%s, org_id)

-- name: list_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since, agent_breach,
run_id FROM workspaces WHERE org_id = %s AND id < %s ORDER BY id DESC LIMIT %s

-- name: list_own_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since, agent_breach,
run_id FROM workspaces WHERE org_id = %s AND created_by_user_id = %s AND id < %s ORDER BY id DESC
LIMIT %s

-- name: get_task
SELECT id AS task_id, workspace_id AS task_workspace_id, description AS task_description, metadata
AS task_metadata, max_iterations AS task_max_iterations, status AS task_status, phase AS task_phase,
iterations AS task_iterations, created_at AS task_created_at, started_at AS task_started_at,
completed_at AS task_completed_at, cancel_requested_by AS task_cancel_requested_by,
cancel_credential_kind AS task_cancel_credential_kind, cancel_requested_at AS
task_cancel_requested_at, cancel_reason AS task_cancel_reason, cancel_request_id AS
task_cancel_request_id, cancel_force_at AS task_cancel_force_at, cancel_force_requested_by AS
task_cancel_force_requested_by, reason AS task_reason, result AS task_result, forced AS task_forced,
input_tokens AS task_input_tokens, output_tokens AS task_output_tokens, model_calls AS
task_model_calls, tool_calls AS task_tool_calls, submitted_by AS task_submitted_by,
max_duration_seconds AS task_max_duration_seconds, max_total_tokens AS task_max_total_tokens,
limit_force_after_seconds AS task_limit_force_after_seconds, committed_bytes AS task_committed_bytes
FROM tasks WHERE id = %s AND workspace_id = %s

-- name: list_tasks
SELECT id AS task_id, workspace_id AS task_workspace_id, description AS task_description, metadata
AS task_metadata, max_iterations AS task_max_iterations, status AS task_status, phase AS task_phase,
iterations AS task_iterations, created_at AS task_created_at, started_at AS task_started_at,
completed_at AS task_completed_at, cancel_requested_by AS task_cancel_requested_by,
cancel_credential_kind AS task_cancel_credential_kind, cancel_requested_at AS
task_cancel_requested_at, cancel_reason AS task_cancel_reason, cancel_request_id AS
task_cancel_request_id, cancel_force_at AS task_cancel_force_at, cancel_force_requested_by AS
task_cancel_force_requested_by, reason AS task_reason, result AS task_result, forced AS task_forced,
input_tokens AS task_input_tokens, output_tokens AS task_output_tokens, model_calls AS
task_model_calls, tool_calls AS task_tool_calls, submitted_by AS task_submitted_by,
max_duration_seconds AS task_max_duration_seconds, max_total_tokens AS task_max_total_tokens,
limit_force_after_seconds AS task_limit_force_after_seconds, committed_bytes AS task_committed_bytes
FROM (SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by,
max_duration_seconds, max_total_tokens, limit_force_after_seconds, committed_bytes,
sum(length(description) + length(result)) OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING
AND 2 PRECEDING) AS characters FROM tasks WHERE workspace_id = %s AND id < %s ORDER BY id DESC LIMIT
%s) t WHERE coalesce(characters, 0) <= 900000 ORDER BY id DESC

-- name: list_events
SELECT workspace_id, seq, type, time, task_id, request_id, trace_id, payload FROM (SELECT
workspace_id, seq, type, time, task_id, request_id, trace_id, payload,
sum(octet_length(payload::text)) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1
PRECEDING) AS bytes FROM events WHERE workspace_id = %s AND seq > %s ORDER BY seq LIMIT %s) e WHERE
coalesce(bytes, 0) < 4194304 ORDER BY seq

-- name: list_wanted_pods
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since, agent_breach,
run_id FROM workspaces WHERE status IN ('provisioning', 'idle', 'busy', 'stopping') AND id > %s
ORDER BY id LIMIT %s

-- name: list_cancellations
SELECT w.id, w.org_id, w.name, w.status, w.status_reason, w.created_by_user_id, w.created_at,
w.updated_at, w.current_task_id, w.epoch, w.last_seq, w.agent_address, w.lease_expires_at,
w.task_unnamed_since, w.agent_breach, w.run_id, t.id AS task_id, t.workspace_id AS
task_workspace_id, t.description AS task_description, t.metadata AS task_metadata, t.max_iterations
AS task_max_iterations, t.status AS task_status, t.phase AS task_phase, t.iterations AS
task_iterations, t.created_at AS task_created_at, t.started_at AS task_started_at, t.completed_at AS
task_completed_at, t.cancel_requested_by AS task_cancel_requested_by, t.cancel_credential_kind AS
task_cancel_credential_kind, t.cancel_requested_at AS task_cancel_requested_at, t.cancel_reason AS
task_cancel_reason, t.cancel_request_id AS task_cancel_request_id, t.cancel_force_at AS
task_cancel_force_at, t.cancel_force_requested_by AS task_cancel_force_requested_by, t.reason AS
task_reason, t.result AS task_result, t.forced AS task_forced, t.input_tokens AS task_input_tokens,
t.output_tokens AS task_output_tokens, t.model_calls AS task_model_calls, t.tool_calls AS
task_tool_calls, t.submitted_by AS task_submitted_by, t.max_duration_seconds AS
task_max_duration_seconds, t.max_total_tokens AS task_max_total_tokens, t.limit_force_after_seconds
AS task_limit_force_after_seconds, t.committed_bytes AS task_committed_bytes FROM tasks t JOIN
workspaces w ON w.id = t.workspace_id WHERE t.status IN ('submitted', 'delivered', 'running') AND
t.cancel_requested_at IS NOT NULL ORDER BY w.id

-- name: record
SELECT /* record_cancellation */ outcome, (w).id, (w).org_id, (w).name, (w).status,
(w).status_reason, (w).created_by_user_id, (w).created_at, (w).updated_at, (w).current_task_id,
(w).epoch, (w).last_seq, (w).agent_address, (w).lease_expires_at, (w).task_unnamed_since,
(w).agent_breach, (w).run_id, (t).id AS task_id, (t).workspace_id AS task_workspace_id,
(t).description AS task_description, (t).metadata AS task_metadata, (t).max_iterations AS
task_max_iterations, (t).status AS task_status, (t).phase AS task_phase, (t).iterations AS
task_iterations, (t).created_at AS task_created_at, (t).started_at AS task_started_at,
(t).completed_at AS task_completed_at, (t).cancel_requested_by AS task_cancel_requested_by,
(t).cancel_credential_kind AS task_cancel_credential_kind, (t).cancel_requested_at AS
task_cancel_requested_at, (t).cancel_reason AS task_cancel_reason, (t).cancel_request_id AS
task_cancel_request_id, (t).cancel_force_at AS task_cancel_force_at, (t).cancel_force_requested_by
AS task_cancel_force_requested_by, (t).reason AS task_reason, (t).result AS task_result, (t).forced
AS task_forced, (t).input_tokens AS task_input_tokens, (t).output_tokens AS task_output_tokens,
(t).model_calls AS task_model_calls, (t).tool_calls AS task_tool_calls, (t).submitted_by AS
task_submitted_by, (t).max_duration_seconds AS task_max_duration_seconds, (t).max_total_tokens AS
task_max_total_tokens, (t).limit_force_after_seconds AS task_limit_force_after_seconds,
(t).committed_bytes AS task_committed_bytes, (w).watched_until FROM
json_populate_recordset(NULL::cancellation_request, %s) AS request CROSS JOIN LATERAL
record_cancellation(p_request => request, p_wait => %s)

-- name: insert_workspaces
INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id, created_at,
updated_at, current_task_id, epoch, last_seq, agent_address, lease_expires_at, task_unnamed_since,
agent_breach, run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: insert_tasks
INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
iterations, created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by,
max_duration_seconds, max_total_tokens, limit_force_after_seconds, committed_bytes) VALUES (%s, %s,
%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
%s, %s, %s)

-- name: insert_events
INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, trace_id, payload) VALUES
(%s, %s, %s, %s, %s, %s, %s, %s)
