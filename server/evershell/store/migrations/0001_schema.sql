-- The tables. Ids are compared byte by byte (COLLATE "C"), so that newest first means the same here and in Python.

-- The closed sets. As domains they are checked where a value comes in; a CHECK of the table would be read and compiled anew by
-- every statement that writes a row, which a cancellation would feel.
CREATE DOMAIN workspace_status AS text
    CHECK (VALUE IN ('provisioning', 'idle', 'busy', 'stopping', 'stopped', 'failed'));
CREATE DOMAIN task_status AS text
    CHECK (VALUE IN ('submitted', 'delivered', 'running', 'completed', 'failed', 'cancelled', 'delivery_failed'));
CREATE DOMAIN task_phase AS text
    CHECK (VALUE IN ('', 'model_call', 'tool_call'));
CREATE DOMAIN event_type AS text
    CHECK (
        VALUE IN (
            'workspace_provisioned', 'workspace_stopped', 'workspace_failed', 'workspace_resumed', 'task_submitted',
            'task_started', 'iteration_completed', 'task_cancel_requested', 'task_completed'
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
    revoked_at timestamptz
);

CREATE INDEX api_keys_of_org ON api_keys (org_id, id);

-- The organization of a workspace needs no row in orgs: a session token may name one that has no API keys.
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
    host text
) WITH (fillfactor = 80);

CREATE INDEX workspaces_of_org ON workspaces (org_id, id);
CREATE INDEX workspaces_of_creator ON workspaces (org_id, created_by_user_id, id);
CREATE INDEX workspaces_with_pod ON workspaces (id) WHERE status IN ('provisioning', 'idle', 'busy', 'stopping');

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
    reason text NOT NULL,
    result text NOT NULL,
    forced boolean NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    model_calls bigint NOT NULL,
    tool_calls bigint NOT NULL,
    CONSTRAINT tasks_intent_is_whole CHECK (
        num_nulls(cancel_requested_by, cancel_credential_kind, cancel_requested_at, cancel_reason, cancel_request_id) IN (0, 5)
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
CREATE UNIQUE INDEX tasks_one_open ON tasks (workspace_id) WHERE status IN ('submitted', 'delivered', 'running');

CREATE TABLE events (
    workspace_id text COLLATE "C" NOT NULL,
    seq bigint NOT NULL,
    type event_type NOT NULL,
    time timestamptz NOT NULL,
    task_id text COLLATE "C",
    request_id text,
    payload jsonb NOT NULL,
    PRIMARY KEY (workspace_id, seq)
);

-- A task ends once, is asked to end once, and has each iteration once, whatever the programs above do.
CREATE UNIQUE INDEX events_one_end ON events (task_id) WHERE type = 'task_completed';
CREATE UNIQUE INDEX events_one_cancel_request ON events (task_id) WHERE type = 'task_cancel_requested';
CREATE UNIQUE INDEX events_one_of_each_iteration ON events (task_id, (payload ->> 'number')) WHERE type = 'iteration_completed';
