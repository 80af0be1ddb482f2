-- The election of a leader.

-- name: try_lock
SELECT pg_try_advisory_lock(%(key)s);
