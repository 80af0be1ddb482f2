-- The audit log. The service only inserts and reads. Entries are removed by dropping partitions.
--
-- The ids begin with the time, so partitions by id are partitions by time, the id alone is the
-- primary key, and a list by id reads the newest partition first. server/store/audit_partitions.py
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

-- The next version has one parameter more.
DROP FUNCTION IF EXISTS record_cancellation_or_skip(
    text, boolean, text, text, text, text, text, timestamptz, text, text, timestamptz, jsonb, boolean
);
