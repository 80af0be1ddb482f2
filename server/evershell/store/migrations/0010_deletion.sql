-- depends: 0008_suspension

-- Deletion of workspaces (docs/decisions/0049-deletion.md).

CREATE INDEX workspaces_deleting ON workspaces (id) WHERE status = 'deleting';

-- What is left of deleted workspaces: a repeat of DeleteWorkspace is answered from it, and the audit
-- log finds the creator in it. Removed as the audit log is, by its retention.
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
