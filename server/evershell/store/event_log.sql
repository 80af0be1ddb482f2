-- The log of the events of all workspaces.

-- name: look_ahead
-- `whole` is the last position before the first missing one, `last` the last one that was read.
WITH later AS (
    SELECT position, row_number() OVER (ORDER BY position) AS number
    FROM (
        SELECT position FROM events WHERE position > %(position)s
        ORDER BY position LIMIT {max_events}
    ) next
)
SELECT
    coalesce(max(position) FILTER (WHERE position = %(position)s + number), %(position)s) AS whole,
    coalesce(max(position), %(position)s) AS last
FROM later;

-- name: list_writers
-- The open transactions that have written or removed events. `virtualtransaction` identifies a transaction.
SELECT virtualtransaction AS writer FROM pg_locks
WHERE relation = 'events'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
