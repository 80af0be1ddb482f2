-- depends: 0012_cancel_tasks

-- The limits of a task; NULL for none.
ALTER TABLE tasks
    ADD COLUMN max_duration_seconds float8,
    ADD COLUMN max_total_tokens bigint,
    ADD COLUMN limit_force_after_seconds float8;

-- The running tasks whose duration is limited, by the time at which the limit is reached. As times
-- without a zone, because an index may contain only what no setting changes. A cancellation changes
-- no column of it, so that its updates stay in place (HOT).
CREATE INDEX tasks_limited ON tasks (
    ((started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds))
)
WHERE max_duration_seconds IS NOT NULL AND status IN ('submitted', 'delivered', 'running');
