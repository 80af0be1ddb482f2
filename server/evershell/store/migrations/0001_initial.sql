-- The tables. Ids are compared byte by byte (COLLATE "C"), so that newest first means the same here
-- and in Python.

-- The closed sets. As domains they are checked where a value comes in. A CHECK of the table would be
-- read and compiled anew by every statement that writes a row, which a cancellation would feel.
CREATE DOMAIN workspace_status AS text
    CHECK (VALUE IN ('provisioning', 'idle', 'busy', 'stopping', 'stopped', 'failed'));
CREATE DOMAIN task_status AS text
    CHECK (
        VALUE IN (
            'submitted', 'delivered', 'running', 'completed', 'failed', 'cancelled', 'delivery_failed'
        )
    );
CREATE DOMAIN task_phase AS text
    CHECK (VALUE IN ('', 'model_call', 'tool_call'));
CREATE DOMAIN event_type AS text
    CHECK (
        VALUE IN (
            'workspace_provisioned', 'workspace_stopped', 'workspace_failed', 'workspace_resumed',
            'task_submitted', 'task_started', 'iteration_completed', 'task_cancel_requested',
            'task_completed'
        )
    );

CREATE TABLE orgs (
    id text COLLATE "C" PRIMARY KEY,
    slug text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE api_keys (
    id text COLLATE "C" PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL REFERENCES orgs (id),
    name text NOT NULL,
    template text NOT NULL CHECK (template IN ('full_access', 'submit_observe', 'read_only')),
    sha256 bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    -- NULL for a key that never expires.
    expires_at timestamptz,
    -- To the minute.
    last_used_at timestamptz
);

CREATE INDEX api_keys_of_org ON api_keys (org_id, id);

-- The organization of a workspace needs no row in orgs: a session token may name one that has no API
-- keys.
CREATE TABLE workspaces (
    id text COLLATE "C" PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL,
    name text NOT NULL,
    status workspace_status NOT NULL,
    status_reason text NOT NULL,
    created_by_user_id text COLLATE "C",
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    current_task_id text COLLATE "C",
    epoch bigint NOT NULL,
    last_seq bigint NOT NULL,
    agent_address text,
    lease_expires_at timestamptz,
    -- The run of the service that started the pod.
    run_id text,
    -- Since when the agent's heartbeats have not named the current task. The fleet controller ends
    -- an agent that lost its task.
    task_unnamed_since timestamptz,
    -- Until when some process has subscribers for the workspace. A process that commits a change of
    -- the workspace notifies the other processes only until then. No index has this column, so that
    -- setting it is a heap-only update.
    watched_until timestamptz,
    -- The rule that the agent broke. The fleet controller ends its pod.
    agent_breach text
) WITH (fillfactor = 80);

CREATE INDEX workspaces_of_org ON workspaces (org_id, id);
CREATE INDEX workspaces_of_creator ON workspaces (org_id, created_by_user_id, id);
CREATE INDEX workspaces_with_pod ON workspaces (id)
WHERE status IN ('provisioning', 'idle', 'busy', 'stopping');
-- The tasks of an organization that have not ended, oldest first. A cancellation changes no column
-- of it, so that its updates stay in place (HOT).
CREATE INDEX workspaces_with_task ON workspaces (org_id, current_task_id)
WHERE current_task_id IS NOT NULL;
-- What the fleet controller looks at every second. No index contains lease_expires_at, so that a
-- heartbeat updates its row in place (HOT).
CREATE INDEX workspaces_unsettled ON workspaces (id)
WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL;
CREATE INDEX workspaces_breached ON workspaces (id) WHERE agent_breach IS NOT NULL;

CREATE TABLE tasks (
    id text COLLATE "C" PRIMARY KEY,
    workspace_id text COLLATE "C" NOT NULL REFERENCES workspaces (id),
    description text NOT NULL,
    metadata jsonb NOT NULL,
    max_iterations integer NOT NULL,
    status task_status NOT NULL,
    phase task_phase NOT NULL,
    iterations integer NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    cancel_requested_by text,
    cancel_credential_kind text,
    cancel_requested_at timestamptz,
    cancel_reason text,
    cancel_request_id text,
    cancel_force_at timestamptz,
    -- Who asked for an iteration to be interrupted: not always who asked first for the task to be
    -- cancelled.
    cancel_force_requested_by text,
    reason text NOT NULL,
    result text NOT NULL,
    forced boolean NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    model_calls bigint NOT NULL,
    tool_calls bigint NOT NULL,
    submitted_by text COLLATE "C" NOT NULL DEFAULT '',
    -- The limits of the task; NULL for none.
    max_duration_seconds float8,
    max_total_tokens bigint,
    limit_force_after_seconds float8,
    -- How much the agent has committed.
    committed_bytes bigint NOT NULL DEFAULT 0,
    CONSTRAINT tasks_intent_is_whole CHECK (
        num_nulls(
            cancel_requested_by, cancel_credential_kind, cancel_requested_at, cancel_reason,
            cancel_request_id
        ) IN (0, 5)
        AND (cancel_force_at IS NULL OR cancel_requested_at IS NOT NULL)
    ),
    CONSTRAINT tasks_end_has_time CHECK (
        (status IN ('completed', 'failed', 'cancelled', 'delivery_failed')) = (completed_at IS NOT NULL)
    ),
    -- Accepted means cancelled: no other end is possible once the intent is recorded.
    CONSTRAINT tasks_intent_decides_end CHECK (
        cancel_requested_at IS NULL OR status NOT IN ('completed', 'failed', 'delivery_failed')
    )
) WITH (fillfactor = 80);

CREATE INDEX tasks_of_workspace ON tasks (workspace_id, id);
-- One task at a time.
CREATE UNIQUE INDEX tasks_one_open ON tasks (workspace_id)
WHERE status IN ('submitted', 'delivered', 'running');
-- The running tasks whose duration is limited, by the time at which the limit is reached. As times
-- without a zone, because an index may contain only what no setting changes. A cancellation changes
-- no column of it, so that its updates stay in place (HOT).
CREATE INDEX tasks_limited ON tasks (
    ((started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds))
)
WHERE max_duration_seconds IS NOT NULL AND status IN ('submitted', 'delivered', 'running');

CREATE TABLE events (
    workspace_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    type event_type NOT NULL,
    time timestamptz NOT NULL,
    task_id text COLLATE "C",
    request_id text,
    trace_id text,
    payload jsonb NOT NULL,
    PRIMARY KEY (workspace_id, seq)
);

-- A task ends once, is asked to end once, and has each iteration once, even if a program has a
-- defect.
CREATE UNIQUE INDEX events_one_end ON events (task_id) WHERE type = 'task_completed';
CREATE UNIQUE INDEX events_one_cancel_request ON events (task_id)
WHERE type = 'task_cancel_requested';
CREATE UNIQUE INDEX events_one_of_each_iteration ON events (task_id, (payload ->> 'number'))
WHERE type = 'iteration_completed';

-- A request to cancel a task, as the functions get it. `audit` is the call's entry of the audit log.
CREATE TYPE cancellation_request AS (
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
    force_requested_by text,
    trace_id text,
    payload jsonb,
    audit json
);

-- The audit log. The service only inserts and reads. Entries are removed by dropping partitions.
--
-- The ids begin with the time, so partitions by id are partitions by time, the id alone is the
-- primary key, and a list by id reads the newest partition first. server/evershell/store/audit.py
-- adds a partition for each month. The default partition takes entries of months without one.
CREATE TABLE audit_entries (
    id text COLLATE "C" PRIMARY KEY,
    time timestamptz NOT NULL,
    org_id text COLLATE "C" NOT NULL,
    actor_id text COLLATE "C" NOT NULL,
    credential_kind text NOT NULL,
    credential_id text NOT NULL,
    rpc text NOT NULL,
    workspace_id text COLLATE "C" NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    request_id text NOT NULL,
    trace_id text NOT NULL,
    client_address text NOT NULL
) PARTITION BY RANGE (id);

CREATE TABLE audit_entries_default PARTITION OF audit_entries DEFAULT;

CREATE INDEX audit_entries_of_org ON audit_entries (org_id, id);
CREATE INDEX audit_entries_of_workspace ON audit_entries (workspace_id, id);

-- The first call with each idempotency key, of the last 24 hours. Expired keys are removed by later
-- calls with keys, a few at a time.
CREATE TABLE idempotency_keys (
    org_id text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    called_at timestamptz NOT NULL,
    workspace_id text NOT NULL,
    task_id text NOT NULL,
    answer text NOT NULL,
    PRIMARY KEY (org_id, key)
);

CREATE INDEX idempotency_keys_called_at ON idempotency_keys (called_at);

-- The organizations that are on hold, each with who asked for it first. Before it is read or
-- written, the lock of the organization is taken: server/evershell/store/holds.py.
CREATE TABLE org_holds (
    org_id text COLLATE "C" PRIMARY KEY,
    held_by text NOT NULL,
    held_since timestamptz NOT NULL,
    reason text NOT NULL
);

-- What is added to the clock of the database, so that the time of the service goes on evenly when
-- that clock is set, or when a fail-over leads to a host whose clock differs
-- (server/evershell/store/service_clock.py). It has one row.
CREATE TABLE service_clock (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    correction_seconds float8 NOT NULL DEFAULT 0
);
INSERT INTO service_clock DEFAULT VALUES;
