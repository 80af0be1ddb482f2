-- depends: 0007_costs

-- Idle workspaces give their pods back (docs/lifetime.md).

-- In one statement, because a savepoint must not follow ALTER DOMAIN at once: PostgreSQL 18 answers
-- "cannot start a subtransaction when there are unprocessed inval messages".
DO $$
BEGIN
    ALTER DOMAIN workspace_status DROP CONSTRAINT workspace_status_check;
    ALTER DOMAIN workspace_status ADD CONSTRAINT workspace_status_check CHECK (
        VALUE IN (
            'provisioning', 'idle', 'busy', 'stopping', 'stopped', 'failed', 'suspended', 'deleting'
        )
    );
    -- The suspended workspaces whose pods have not ended yet.
    CREATE INDEX workspaces_suspending ON workspaces (id)
    WHERE status = 'suspended' AND run_id IS NOT NULL;
END;
$$;
