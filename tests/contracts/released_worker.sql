-- The statements of the store of the previous version, with their columns.
-- schema: 0001_initial

-- name: lock_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach, watched_until FROM workspaces WHERE id = %s FOR UPDATE

-- name: current_task
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by,
max_duration_seconds, max_total_tokens, limit_force_after_seconds, committed_bytes FROM tasks WHERE
id = (SELECT current_task_id FROM workspaces WHERE id = %s)

-- name: get_workspace
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE id = %s AND org_id = coalesce(%s, org_id)

-- name: list_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE org_id = %s AND id < %s ORDER BY id DESC LIMIT %s

-- name: list_own_workspaces
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE org_id = %s AND created_by_user_id = %s AND id < %s ORDER BY id
DESC LIMIT %s

-- name: list_wanted_pods
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE status IN ('provisioning', 'idle', 'busy', 'stopping') AND id >
%s ORDER BY id LIMIT %s

-- name: list_unsettled
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS
NOT NULL OR agent_breach IS NOT NULL ORDER BY id

-- name: list_cancellations
SELECT w.id, w.org_id, w.name, w.status, w.status_reason, w.created_by_user_id, w.created_at,
w.updated_at, w.current_task_id, w.epoch, w.last_seq, w.agent_address, w.lease_expires_at, w.run_id,
w.task_unnamed_since, w.agent_breach, t.id, t.workspace_id, t.description, t.metadata,
t.max_iterations, t.status, t.phase, t.iterations, t.created_at, t.started_at, t.completed_at,
t.cancel_requested_by, t.cancel_credential_kind, t.cancel_requested_at, t.cancel_reason,
t.cancel_request_id, t.cancel_force_at, t.cancel_force_requested_by, t.reason, t.result, t.forced,
t.input_tokens, t.output_tokens, t.model_calls, t.tool_calls, t.submitted_by,
t.max_duration_seconds, t.max_total_tokens, t.limit_force_after_seconds, t.committed_bytes FROM
tasks t JOIN workspaces w ON w.id = t.workspace_id WHERE t.status IN ('submitted', 'delivered',
'running') AND t.cancel_requested_at IS NOT NULL ORDER BY w.id

-- name: list_limits_reached
SELECT workspace_id FROM tasks WHERE max_duration_seconds IS NOT NULL AND status IN ('submitted',
'delivered', 'running') AND (started_at AT TIME ZONE 'UTC') + make_interval(secs =>
max_duration_seconds) <= (%s::timestamptz AT TIME ZONE 'UTC') AND (cancel_requested_at IS NULL OR
coalesce(cancel_force_at, 'infinity') > started_at + make_interval(secs => max_duration_seconds +
limit_force_after_seconds + 0.001)) ORDER BY (started_at AT TIME ZONE 'UTC') + make_interval(secs =>
max_duration_seconds) LIMIT %s

-- name: list_expired_leases
SELECT id, org_id, name, status, status_reason, created_by_user_id, created_at, updated_at,
current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id, task_unnamed_since,
agent_breach FROM workspaces WHERE status IN ('provisioning', 'idle', 'busy', 'stopping') AND
lease_expires_at < %s ORDER BY id

-- name: seconds_left
SELECT extract(epoch FROM {} - %s::timestamptz)::float8 FROM workspaces WHERE

-- name: first_lease_seconds_left
SELECT extract(epoch FROM min(lease_expires_at) - %s::timestamptz)::float8 FROM workspaces WHERE
status IN ('provisioning', 'idle', 'busy', 'stopping')

-- name: lease_seconds_left
SELECT extract(epoch FROM lease_expires_at - %s::timestamptz)::float8 FROM workspaces WHERE id = %s

-- name: count_workspaces
SELECT status, count(*) FROM workspaces GROUP BY status

-- name: get_task
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by,
max_duration_seconds, max_total_tokens, limit_force_after_seconds, committed_bytes FROM tasks WHERE
id = %s AND workspace_id = %s

-- name: get_workspace_with_task
SELECT w.id, w.org_id, w.name, w.status, w.status_reason, w.created_by_user_id, w.created_at,
w.updated_at, w.current_task_id, w.epoch, w.last_seq, w.agent_address, w.lease_expires_at, w.run_id,
w.task_unnamed_since, w.agent_breach, t.id, t.workspace_id, t.description, t.metadata,
t.max_iterations, t.status, t.phase, t.iterations, t.created_at, t.started_at, t.completed_at,
t.cancel_requested_by, t.cancel_credential_kind, t.cancel_requested_at, t.cancel_reason,
t.cancel_request_id, t.cancel_force_at, t.cancel_force_requested_by, t.reason, t.result, t.forced,
t.input_tokens, t.output_tokens, t.model_calls, t.tool_calls, t.submitted_by,
t.max_duration_seconds, t.max_total_tokens, t.limit_force_after_seconds, t.committed_bytes FROM
workspaces w LEFT JOIN tasks t ON t.id = %s AND t.workspace_id = w.id WHERE w.id = %s AND org_id =
coalesce(%s, org_id)

-- name: list_tasks
SELECT id, workspace_id, description, metadata, max_iterations, status, phase, iterations,
created_at, started_at, completed_at, cancel_requested_by, cancel_credential_kind,
cancel_requested_at, cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by,
reason, result, forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by,
max_duration_seconds, max_total_tokens, limit_force_after_seconds, committed_bytes FROM (SELECT id,
workspace_id, description, metadata, max_iterations, status, phase, iterations, created_at,
started_at, completed_at, cancel_requested_by, cancel_credential_kind, cancel_requested_at,
cancel_reason, cancel_request_id, cancel_force_at, cancel_force_requested_by, reason, result,
forced, input_tokens, output_tokens, model_calls, tool_calls, submitted_by, max_duration_seconds,
max_total_tokens, limit_force_after_seconds, committed_bytes, sum(length(description) +
length(result)) OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS
characters FROM tasks WHERE workspace_id = %s AND id < %s ORDER BY id DESC LIMIT %s) t WHERE
coalesce(characters, 0) <= 900000 ORDER BY id DESC

-- name: list_events
SELECT workspace_id, seq, type, time, task_id, request_id, trace_id, payload FROM (SELECT
workspace_id, seq, type, time, task_id, request_id, trace_id, payload,
sum(octet_length(payload::text)) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1
PRECEDING) AS bytes FROM events WHERE workspace_id = %s AND seq > %s ORDER BY seq LIMIT %s) e WHERE
coalesce(bytes, 0) < 4194304 ORDER BY seq

-- name: record_one
SELECT skipped, recorded, (w).id, (w).org_id, (w).name, (w).status, (w).status_reason,
(w).created_by_user_id, (w).created_at, (w).updated_at, (w).current_task_id, (w).epoch,
(w).last_seq, (w).agent_address, (w).lease_expires_at, (w).run_id, (w).task_unnamed_since,
(w).agent_breach, (t).id, (t).workspace_id, (t).description, (t).metadata, (t).max_iterations,
(t).status, (t).phase, (t).iterations, (t).created_at, (t).started_at, (t).completed_at,
(t).cancel_requested_by, (t).cancel_credential_kind, (t).cancel_requested_at, (t).cancel_reason,
(t).cancel_request_id, (t).cancel_force_at, (t).cancel_force_requested_by, (t).reason, (t).result,
(t).forced, (t).input_tokens, (t).output_tokens, (t).model_calls, (t).tool_calls, (t).submitted_by,
(t).max_duration_seconds, (t).max_total_tokens, (t).limit_force_after_seconds, (t).committed_bytes,
(w).watched_until FROM record_cancellation_or_skip(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
%s, %s, %s)

-- name: record_many
SELECT skipped, recorded, (w).id, (w).org_id, (w).name, (w).status, (w).status_reason,
(w).created_by_user_id, (w).created_at, (w).updated_at, (w).current_task_id, (w).epoch,
(w).last_seq, (w).agent_address, (w).lease_expires_at, (w).run_id, (w).task_unnamed_since,
(w).agent_breach, (t).id, (t).workspace_id, (t).description, (t).metadata, (t).max_iterations,
(t).status, (t).phase, (t).iterations, (t).created_at, (t).started_at, (t).completed_at,
(t).cancel_requested_by, (t).cancel_credential_kind, (t).cancel_requested_at, (t).cancel_reason,
(t).cancel_request_id, (t).cancel_force_at, (t).cancel_force_requested_by, (t).reason, (t).result,
(t).forced, (t).input_tokens, (t).output_tokens, (t).model_calls, (t).tool_calls, (t).submitted_by,
(t).max_duration_seconds, (t).max_total_tokens, (t).limit_force_after_seconds, (t).committed_bytes,
(w).watched_until FROM record_cancellations(%s)

-- name: insert_workspaces
INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id, created_at,
updated_at, current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id,
task_unnamed_since, agent_breach) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,
%s, %s)

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
