-- The log of the events of all workspaces.

-- name: look_ahead
-- `whole` is the last position before the first missing one, `last` the last one that was read. `server`
-- differs after a fail-over.
WITH later AS (
    SELECT position, row_number() OVER (ORDER BY position) AS number
    FROM (
        SELECT position FROM events WHERE position > %(position)s
        ORDER BY position LIMIT {max_positions}
    ) next
)
SELECT
    coalesce(max(position) FILTER (WHERE position = %(position)s + number), %(position)s) AS whole,
    coalesce(max(position), %(position)s) AS last,
    pg_postmaster_start_time() AS server
FROM later;

-- name: list_writers
-- The open transactions that have written or removed events. `virtualtransaction` identifies a transaction.
-- `server` differs after a fail-over.
SELECT
    pg_postmaster_start_time() AS server,
    coalesce(array_agg(virtualtransaction), ARRAY[]::text[]) AS transactions
FROM pg_locks
WHERE relation = 'events'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: last_position
-- Takes the first position if no event has taken it: 0 is not a position, because a stream after 0
-- begins with new events. `server` differs after a fail-over.
SELECT
    coalesce(pg_sequence_last_value('event_positions'), nextval('event_positions')) AS position,
    pg_postmaster_start_time() AS server;

-- name: list_log_events
-- The events of these organizations, and those of workspaces with one of these creators. A batch ends
-- early if its payloads are large. `found` says how many events there were, up to the limit.
SELECT {e.event}, e.position, e.org_id, e.created_by_user_id, e.found
FROM (
    SELECT
        {e.event}, e.position, e.org_id, e.created_by_user_id,
        count(*) OVER () AS found,
        sum({payload_bytes}) OVER (
            ORDER BY e.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes
    FROM (
        SELECT e.*, w.org_id, w.created_by_user_id
        FROM events e JOIN workspaces w ON w.id = e.workspace_id
        WHERE e.position > %(after)s AND e.position <= %(until)s
            AND (
                w.org_id = ANY (%(org_ids)s)
                OR (w.org_id, w.created_by_user_id) IN (
                    SELECT * FROM unnest(%(orgs_of_users)s::text[], %(user_ids)s::text[])
                )
            )
        ORDER BY e.position
        LIMIT %(limit)s
    ) e
) e
WHERE coalesce(e.bytes, 0) < {max_batch_bytes}
ORDER BY e.position;
