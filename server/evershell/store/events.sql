-- The events of a workspace.

-- name: list_events
-- A batch ends early if its payloads are large. Returns no row if the workspace does not exist, and
-- one row without a `seq` if the workspace has no further events.
SELECT {e.event}
FROM workspaces w LEFT JOIN LATERAL (
    SELECT {event}, sum({payload_bytes}) OVER (
        ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes
    FROM events
    WHERE workspace_id = w.id AND seq > %(after_seq)s
    ORDER BY seq
    LIMIT %(limit)s
) e ON coalesce(bytes, 0) < {max_batch_bytes}
WHERE w.id = %(workspace_id)s
ORDER BY e.seq;

-- name: list_last_events
-- The last events before a `seq`, newest first, and one more to find out whether there is an older one.
-- A page ends early if its payloads are large. `found` says how many events were found before that.
SELECT {e.event}, found
FROM (
    SELECT {event}, count(*) OVER () AS found, sum({payload_bytes}) OVER (
        ORDER BY seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes
    FROM (
        SELECT * FROM events
        WHERE workspace_id = %(workspace_id)s AND seq < %(before_seq)s
        ORDER BY seq DESC
        LIMIT %(limit)s + 1
    ) last
) e
WHERE coalesce(bytes, 0) < {max_page_bytes}
ORDER BY seq DESC;
