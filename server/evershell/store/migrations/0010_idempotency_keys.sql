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
