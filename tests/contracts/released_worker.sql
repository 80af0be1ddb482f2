-- The statements of the store of the previous version, with their columns.
-- schema: 0003_who_forces

-- name: record_cancellation
SELECT recorded, (w).id, (w).org_id, (w).name, (w).status, (w).status_reason,
(w).created_by_user_id, (w).created_at, (w).updated_at, (w).current_task_id, (w).epoch,
(w).last_seq, (w).agent_address, (w).lease_expires_at, (w).host, (t).id, (t).workspace_id,
(t).description, (t).metadata, (t).max_iterations, (t).status, (t).phase, (t).iterations,
(t).created_at, (t).started_at, (t).completed_at, (t).cancel_requested_by,
(t).cancel_credential_kind, (t).cancel_requested_at, (t).cancel_reason, (t).cancel_request_id,
(t).cancel_force_at, (t).cancel_force_requested_by, (t).reason, (t).result, (t).forced,
(t).input_tokens, (t).output_tokens, (t).model_calls, (t).tool_calls FROM record_cancellation(%s,
%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: lock_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, host FROM workspaces WHERE id =
%s FOR UPDATE

-- name: current_task
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls FROM tasks WHERE id =
(SELECT current_task_id FROM workspaces WHERE id = %s)

-- name: get_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, host FROM workspaces WHERE id =
%s

-- name: list_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, host FROM workspaces WHERE org_id
= %s AND id < %s ORDER BY id DESC LIMIT %s

-- name: list_own_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, host FROM workspaces WHERE org_id
= %s AND created_by_user_id = %s AND id < %s ORDER BY id DESC LIMIT %s

-- name: list_wanted_pods
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, host FROM workspaces WHERE status
IN ('provisioning', 'idle', 'busy', 'stopping') ORDER BY id

-- name: list_cancellations
SELECT w.id, w.org_id, w.name, w.status, w.status_reason, w.created_by_user_id, w.created_at,
w.updated_at, w.current_task_id, w.epoch, w.last_seq, w.agent_address, w.lease_expires_at, w.host,
t.id, t.workspace_id, t.description, t.metadata, t.max_iterations, t.status, t.phase, t.iterations,
t.created_at, t.started_at, t.completed_at, t.cancel_requested_by, t.cancel_credential_kind,
t.cancel_requested_at, t.cancel_reason, t.cancel_request_id, t.cancel_force_at,
t.cancel_force_requested_by, t.reason, t.result, t.forced, t.input_tokens, t.output_tokens,
t.model_calls, t.tool_calls FROM workspaces w JOIN tasks t ON t.id = w.current_task_id WHERE
t.cancel_requested_at IS NOT NULL ORDER BY w.id

-- name: get_task
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls FROM tasks WHERE id =
%s AND workspace_id = %s

-- name: list_tasks
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls FROM tasks WHERE
workspace_id = %s AND id < %s ORDER BY id DESC LIMIT %s

-- name: list_events
SELECT workspace_id, seq, type, time, task_id, request_id, payload FROM events WHERE workspace_id =
%s AND seq > %s ORDER BY seq LIMIT %s

-- name: insert_workspaces
INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id, created_at,
updated_at, current_task_id, epoch, last_seq, agent_address, lease_expires_at, host) VALUES (%s, %s,
%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: update_workspaces
UPDATE workspaces SET org_id = %s, name = %s, status = %s, status_reason = %s, created_by_user_id =
%s, created_at = %s, updated_at = %s, current_task_id = %s, epoch = %s, last_seq = %s, agent_address
= %s, lease_expires_at = %s, host = %s WHERE id = %s

-- name: insert_tasks
INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
iterations, created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls) VALUES (%s, %s, %s,
%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: update_tasks
UPDATE tasks SET workspace_id = %s, description = %s, metadata = %s, max_iterations = %s, status =
%s, phase = %s, iterations = %s, created_at = %s, started_at = %s, completed_at = %s,
cancel_requested_by = %s, cancel_credential_kind = %s, cancel_requested_at = %s, cancel_reason = %s,
cancel_request_id = %s, cancel_force_at = %s, cancel_force_requested_by = %s, reason = %s, result =
%s, forced = %s, input_tokens = %s, output_tokens = %s, model_calls = %s, tool_calls = %s WHERE id =
%s

-- name: insert_events
INSERT INTO events (workspace_id, seq, type, time, task_id, request_id, payload) VALUES (%s, %s, %s,
%s, %s, %s, %s)
