-- The deliveries of webhooks.

-- name: become_reader
-- One process at a time reads the log for webhooks. A process that finds it taken does not wait. The
-- reader waits for locks of deliveries, but gives up before PostgreSQL looks for deadlocks (after 1 s).
SELECT
    pg_try_advisory_xact_lock(hashtextextended('log reader webhooks', 0)) AS is_reader,
    set_config('lock_timeout', '500ms', true);

-- name: read_position
-- The reader skips the events that are older than every webhook.
SELECT greatest(position, (SELECT min(after_position) FROM webhooks)) AS position
FROM log_readers WHERE name = 'webhooks';

-- name: record_events
-- Adds the events to the pending deliveries of the webhooks that want them. Events that a delivery
-- already has are skipped: the delivery of a task's webhook begins with the task's earlier events.
--
-- A row that has a `due_at` keeps it, whether the delivery is due, waits for a retry or is claimed.
-- A claim stays valid: the process that has claimed the row sees the new `last_seq` when it records
-- its result. Disabled webhooks get rows too. The process that claims a row checks whether the
-- webhook of the row is disabled.
INSERT INTO webhook_deliveries AS d (
    workspace_id, task_id, webhook_id, org_id, receiver, delivered_seq, last_seq, due_at, pending_since
)
SELECT
    e.workspace_id, coalesce(e.task_id, ''), h.id, w.org_id, h.receiver, min(e.seq) - 1, max(e.seq),
    %(now)s, min(e.time)
FROM events e JOIN workspaces w ON w.id = e.workspace_id
CROSS JOIN LATERAL (
    SELECT * FROM webhooks WHERE org_id = w.org_id AND task_id IS NULL
    UNION ALL
    SELECT * FROM webhooks WHERE task_id = e.task_id
) h
WHERE e.position > %(after)s AND e.position <= %(position)s AND e.position > h.after_position
    AND e.type = ANY (h.event_types)
    AND (h.creator_user_id IS NULL OR h.creator_user_id = w.created_by_user_id)
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3
ON CONFLICT (workspace_id, task_id, webhook_id) DO UPDATE
SET last_seq = EXCLUDED.last_seq,
    due_at = coalesce(d.due_at, EXCLUDED.due_at),
    pending_since = CASE WHEN d.due_at IS NULL THEN EXCLUDED.pending_since ELSE d.pending_since END,
    attempts = CASE WHEN d.due_at IS NULL THEN 0 ELSE d.attempts END,
    failed = false,
    settled_at = NULL
WHERE d.last_seq < EXCLUDED.last_seq;

-- name: set_position
UPDATE log_readers SET position = %(position)s WHERE name = 'webhooks';

-- name: claim
-- `receivers` walks through the index from one receiver to the next, without reading the deliveries
-- in between.
WITH RECURSIVE receivers AS (
    (
        SELECT org_id, receiver, 1 AS number FROM webhook_deliveries
        WHERE due_at IS NOT NULL AND (org_id, receiver) > (%(after_org)s, %(after_receiver)s)
        ORDER BY org_id, receiver LIMIT 1
    )
    UNION ALL
    SELECT later.org_id, later.receiver, r.number + 1
    FROM receivers r
    CROSS JOIN LATERAL (
        SELECT org_id, receiver FROM webhook_deliveries
        WHERE due_at IS NOT NULL AND (org_id, receiver) > (r.org_id, r.receiver)
        ORDER BY org_id, receiver LIMIT 1
    ) later
    WHERE r.number < {max_receivers}
), free AS (
    SELECT org_id, receiver, row_number() OVER (PARTITION BY org_id ORDER BY receiver) AS number
    FROM receivers r
    WHERE r.org_id || ' ' || r.receiver <> ALL (%(busy)s) AND r.org_id <> ALL (%(full_orgs)s)
        AND EXISTS (
            SELECT FROM webhook_deliveries d
            WHERE d.org_id = r.org_id AND d.receiver = r.receiver AND d.due_at <= %(now)s
        )
), picked AS (
    SELECT due.* FROM free CROSS JOIN LATERAL (
        SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries d
        WHERE d.org_id = free.org_id AND d.receiver = free.receiver AND d.due_at <= %(now)s
        ORDER BY d.due_at LIMIT {max_of_receiver}
        FOR UPDATE SKIP LOCKED
    ) due
    WHERE free.number <= {max_receivers_of_org}
), removed AS (
    -- Removes deliveries whose webhook was deleted.
    DELETE FROM webhook_deliveries d USING picked
    WHERE (d.workspace_id, d.task_id, d.webhook_id)
            = (picked.workspace_id, picked.task_id, picked.webhook_id)
        AND NOT EXISTS (SELECT FROM webhooks h WHERE h.id = picked.webhook_id)
    RETURNING 1
), claimed AS (
    UPDATE webhook_deliveries d SET claim = %(claim)s, due_at = %(leased_until)s
    FROM picked JOIN webhooks h ON h.id = picked.webhook_id
    WHERE (d.workspace_id, d.task_id, d.webhook_id)
        = (picked.workspace_id, picked.task_id, picked.webhook_id)
    RETURNING d.*
)
SELECT
    walked.walked, walked.last_org, walked.last_receiver,
    EXISTS (SELECT FROM removed) AS has_removed,
    c.workspace_id AS delivery_workspace_id, c.task_id AS delivery_task_id, c.pending_since,
    c.delivered_seq, c.attempts,
    {h.webhook},
    {e.event}
FROM (
    SELECT count(*) AS walked, (max(ARRAY[org_id, receiver]))[1] AS last_org,
        (max(ARRAY[org_id, receiver]))[2] AS last_receiver
    FROM receivers
) walked
LEFT JOIN (claimed c JOIN webhooks h ON h.id = c.webhook_id) ON true
LEFT JOIN LATERAL (
    SELECT workspace_id, seq, type, time, task_id, request_id, trace_id,
        CASE
            WHEN pg_column_size(payload) <= {max_payload_bytes}
                AND pg_column_compression(payload) IS NULL
            THEN payload
        END AS payload
    FROM events
    WHERE workspace_id = c.workspace_id AND seq > c.delivered_seq AND seq <= c.last_seq
        AND task_id IS NOT DISTINCT FROM nullif(c.task_id, '') AND type = ANY (h.event_types)
    ORDER BY seq LIMIT {max_events}
) e ON true
ORDER BY c.workspace_id, c.task_id, c.webhook_id, e.seq;

-- name: record
-- A delivery with further events is due at once, unless the attempt failed. An event that was
-- read while the row was claimed has not made the delivery due: `record_events` leaves `due_at` as it
-- is unless it is null, and only sets `last_seq`.
WITH results AS (
    SELECT * FROM json_to_recordset(%(results)s) AS r(
        workspace_id text, task_id text, webhook_id text, delivered_seq bigint, attempts integer,
        error text, retry_at timestamptz, attempted boolean
    )
), locked AS (
    -- FOR UPDATE reads `last_seq` from the latest version of the row.
    SELECT r.*, d.last_seq FROM results r
    JOIN webhook_deliveries d USING (workspace_id, task_id, webhook_id)
    WHERE d.claim = %(claim)s
    FOR UPDATE OF d SKIP LOCKED
), later AS (
    SELECT l.*, l.last_seq > l.delivered_seq AND (l.error = '' OR was_enabled) AS has_more,
        l.error <> '' AND l.retry_at IS NULL AND NOT was_enabled AS has_failed
    FROM locked l
    CROSS JOIN LATERAL (
        -- Whether the webhook was disabled when the delivery was claimed, but is enabled now.
        SELECT NOT l.attempted AND l.retry_at IS NULL AND EXISTS (
            SELECT FROM webhooks h WHERE h.id = l.webhook_id AND h.disabled_at IS NULL
        ) AS was_enabled
    ) h
)
UPDATE webhook_deliveries d
SET claim = NULL,
    delivered_seq = r.delivered_seq,
    pending_since = CASE
        WHEN r.delivered_seq > d.delivered_seq THEN %(now)s ELSE d.pending_since
    END,
    due_at = CASE WHEN r.has_more THEN %(now)s ELSE r.retry_at END,
    failed = r.has_failed,
    settled_at = CASE WHEN NOT r.has_more AND r.retry_at IS NULL THEN %(now)s::timestamptz END,
    attempts = r.attempts,
    last_error = r.error,
    last_attempt_at = CASE WHEN r.attempted THEN %(now)s ELSE d.last_attempt_at END
FROM later r
WHERE (d.workspace_id, d.task_id, d.webhook_id) = (r.workspace_id, r.task_id, r.webhook_id)
RETURNING d.workspace_id, d.task_id, d.webhook_id, r.has_more;

-- name: disable_webhooks
UPDATE webhooks SET disabled_at = %(now)s WHERE id = ANY (%(ids)s) AND disabled_at IS NULL;

-- name: read_event
SELECT {event} FROM events WHERE workspace_id = %(workspace_id)s AND seq = %(seq)s;

-- name: prune_failed
DELETE FROM webhook_deliveries WHERE (workspace_id, task_id, webhook_id) IN (
    SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries d
    WHERE failed AND NOT EXISTS (SELECT FROM webhooks h WHERE h.id = d.webhook_id)
    LIMIT {max_pruned}
    FOR UPDATE SKIP LOCKED
);

-- name: prune_settled
DELETE FROM webhook_deliveries WHERE (workspace_id, task_id, webhook_id) IN (
    SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries d
    WHERE settled_at < %(before)s
    LIMIT {max_pruned}
    FOR UPDATE SKIP LOCKED
);

-- name: prune_webhooks
-- The webhook of an ended task gets no further events.
DELETE FROM webhooks WHERE id IN (
    SELECT h.id FROM webhooks h JOIN tasks t ON t.id = h.task_id
    WHERE t.completed_at < %(before)s
    LIMIT {max_pruned}
);

-- name: list_sealed_with_others
SELECT id, sealed_secret, sealed_previous_secret, sealed_headers FROM webhooks
WHERE id > %(after_id)s AND (
    substr(sealed_secret, 1, %(length)s) <> %(key_id)s
    OR substr(sealed_previous_secret, 1, %(length)s) <> %(key_id)s
    OR substr(sealed_headers, 1, %(length)s) <> %(key_id)s
)
ORDER BY id
LIMIT 100;

-- name: reseal
UPDATE webhooks
SET sealed_secret = %(new_sealed_secret)s,
    sealed_previous_secret = %(new_sealed_previous_secret)s,
    sealed_headers = %(new_sealed_headers)s
WHERE id = %(webhook_id)s
    AND sealed_secret IS NOT DISTINCT FROM %(sealed_secret)s
    AND sealed_previous_secret IS NOT DISTINCT FROM %(sealed_previous_secret)s
    AND sealed_headers IS NOT DISTINCT FROM %(sealed_headers)s;

-- name: any_exist
SELECT EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM webhook_deliveries) AS exist;

-- name: count_deliveries
-- Uses the indexes of due and of failed deliveries. Counts at most 10,001 of each, to stay cheap. The
-- oldest event may be one that the log's reader has not read yet.
SELECT p.pending, least(p.oldest, u.oldest) AS oldest, f.failed
FROM (
    SELECT count(*) AS pending, min(pending_since) AS oldest FROM (
        SELECT pending_since FROM webhook_deliveries WHERE due_at IS NOT NULL LIMIT 10001
    ) few
) p, (
    SELECT count(*) AS failed FROM (
        SELECT FROM webhook_deliveries WHERE failed LIMIT 10001
    ) few
) f, (
    SELECT min(time) AS oldest FROM (
        SELECT time FROM events
        WHERE position > (SELECT position FROM log_readers WHERE name = 'webhooks')
            AND position > (SELECT min(after_position) FROM webhooks)
        ORDER BY position LIMIT 1
    ) unread
) u;
