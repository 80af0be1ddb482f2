-- depends: 0005_trees

-- What tasks cost, in nano-dollars (docs/costs.md).

ALTER TABLE tasks
    -- A limit of the task; NULL for none.
    ADD COLUMN max_cost_nanos bigint,
    -- NULL if it is unknown, as that of tasks of an earlier version.
    ADD COLUMN cost_nanos bigint;

-- Not validated, because that would read all events, which the previous constraint has checked. One
-- statement, because PostgreSQL begins no savepoint right after it has dropped the constraint of a domain.
DO $$
BEGIN
    ALTER DOMAIN event_type DROP CONSTRAINT event_type_check;
    ALTER DOMAIN event_type ADD CONSTRAINT event_type_check CHECK (
        VALUE IN (
            'workspace_provisioned', 'workspace_stopped', 'workspace_failed', 'workspace_resumed',
            'task_submitted', 'task_started', 'iteration_completed', 'task_cancel_requested',
            'task_completed', 'task_limit_approached'
        )
    ) NOT VALID;
END
$$;
