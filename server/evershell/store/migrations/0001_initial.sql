-- The tables. Ids are compared byte by byte (COLLATE "C"), so that newest first means the same here
-- and in Python.

-- The closed sets. As domains they are checked where a value comes in. A CHECK of the table would be
-- read and compiled anew by every statement that writes a row, which a cancellation would feel.
CREATE DOMAIN workspace_status AS text
    CHECK (
        VALUE IN (
            'provisioning', 'idle', 'busy', 'stopping', 'stopped', 'failed', 'suspended', 'deleting'
        )
    );
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
            'task_completed', 'task_limit_approached'
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
-- The suspended workspaces whose pods have not ended yet.
CREATE INDEX workspaces_suspending ON workspaces (id)
WHERE status = 'suspended' AND run_id IS NOT NULL;
CREATE INDEX workspaces_deleting ON workspaces (id) WHERE status = 'deleting';

-- What the agent card of a workspace says, beside its name. Apart from the workspaces, so that their
-- rows, which every call reads, stay small.
CREATE TABLE agent_cards (
    workspace_id text COLLATE "C" PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    description text NOT NULL,
    -- A description for each name.
    skills jsonb NOT NULL,
    is_public boolean NOT NULL
);

-- What is left of deleted workspaces (docs/decisions/0049-deletion.md): a repeat of DeleteWorkspace
-- is answered from it, and the audit log finds the creator in it. Removed as the audit log is, by its
-- retention.
CREATE TABLE deleted_workspaces (
    id text COLLATE "C" PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL,
    name text NOT NULL,
    status_reason text NOT NULL,
    created_by_user_id text COLLATE "C",
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    epoch bigint NOT NULL,
    deleted_at timestamptz NOT NULL
);

CREATE INDEX deleted_workspaces_deleted_at ON deleted_workspaces (deleted_at);

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
    -- From the root of the tree to the parent; NULL for a task without a parent
    -- (docs/decisions/0043-trees.md). It never changes, so a cancellation updates its row in place (HOT).
    ancestor_ids text[] COLLATE "C",
    -- A limit of the task, in nano-dollars; NULL for none.
    max_cost_nanos bigint,
    -- What the task has cost; NULL if it is unknown.
    cost_nanos bigint,
    -- Whether the limits of the root count for its tree. Set for the root and every descendant, so that
    -- the open trees with such limits are found even if the root has ended. It never changes, and
    -- `status` is in the condition of another index already, so a cancellation updates its row in place
    -- (HOT).
    in_limited_tree boolean NOT NULL DEFAULT false,
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
-- The tasks of a tree, those that have not ended without the others.
CREATE INDEX tasks_of_root ON tasks ((ancestor_ids[1]), status) WHERE ancestor_ids IS NOT NULL;
CREATE INDEX tasks_of_parent ON tasks ((ancestor_ids[cardinality(ancestor_ids)]), id)
WHERE ancestor_ids IS NOT NULL;
CREATE INDEX tasks_in_limited_trees ON tasks ((coalesce(ancestor_ids[1], id)))
WHERE in_limited_tree AND status IN ('submitted', 'delivered', 'running');

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

-- Webhooks, and how far the events of each task were delivered to each of them.

CREATE TABLE webhooks (
    id text COLLATE "C" PRIMARY KEY,
    org_id text COLLATE "C" NOT NULL,
    url text NOT NULL,
    -- Scheme, host and port of the URL.
    receiver text COLLATE "C" NOT NULL,
    event_types text[] NOT NULL,
    description text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    -- If set, it gets only events of workspaces that this user created.
    creator_user_id text COLLATE "C",
    -- Set for a webhook of one task.
    workspace_id text COLLATE "C",
    task_id text COLLATE "C",
    name text COLLATE "C",
    payload_form text NOT NULL,
    -- Encrypted (server/evershell/auth/sealing.py).
    sealed_headers bytea,
    sealed_secret bytea NOT NULL,
    sealed_previous_secret bytea,
    previous_secret_expires_at timestamptz,
    -- Since when nothing is sent; NULL if it is enabled.
    disabled_at timestamptz,
    CONSTRAINT webhooks_scope_is_whole CHECK (num_nulls(workspace_id, task_id, name) IN (0, 3))
);

CREATE INDEX webhooks_of_org ON webhooks (org_id, id) WHERE task_id IS NULL;
CREATE UNIQUE INDEX webhooks_of_task ON webhooks (task_id, name) WHERE task_id IS NOT NULL;

-- One row for each webhook and task. It has no foreign keys, because the events of busy tasks would
-- then lock the row of the webhook.
CREATE TABLE webhook_deliveries (
    workspace_id text COLLATE "C" NOT NULL,
    -- Empty for the events of the workspace itself.
    task_id text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    org_id text COLLATE "C" NOT NULL,
    -- Scheme, host and port of the URL.
    receiver text COLLATE "C" NOT NULL,
    -- The last event that was delivered, and the last one that is to be delivered.
    delivered_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    -- When the next attempt is due, or when the claim ends; NULL if there is nothing to send.
    due_at timestamptz,
    -- Since when the next event has been waiting.
    pending_since timestamptz NOT NULL,
    -- Identifies the claim of the process that makes the attempt.
    claim text,
    failed boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    last_error text NOT NULL DEFAULT '',
    last_attempt_at timestamptz,
    -- Since when there is nothing to send.
    settled_at timestamptz,
    PRIMARY KEY (workspace_id, task_id, webhook_id)
) WITH (fillfactor = 70);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (org_id, receiver, due_at)
WHERE due_at IS NOT NULL;
CREATE INDEX webhook_deliveries_settled ON webhook_deliveries (settled_at)
WHERE settled_at IS NOT NULL;
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (webhook_id, settled_at)
WHERE failed;

-- functions/record_webhook_event.sql replaces it.
CREATE FUNCTION record_webhook_event() RETURNS trigger
LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

CREATE TRIGGER record_webhook_event AFTER INSERT ON events
FOR EACH ROW EXECUTE FUNCTION record_webhook_event();
