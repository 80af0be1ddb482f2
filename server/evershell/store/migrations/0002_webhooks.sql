-- depends: 0001_initial

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
