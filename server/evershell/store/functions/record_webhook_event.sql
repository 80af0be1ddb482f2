-- Adds an event to the pending deliveries of the webhooks that want it, in the transaction of the
-- event. It is called for events of programs of the previous version. The events of other programs
-- have a position and are read from the log (features/webhooks/deliveries.sql: record_events). The
-- transaction has locked the workspace, so the events of the workspace come one by one.
--
-- A row that has a `due_at` keeps it, whether the delivery is due, waits for a retry or is claimed.
-- A claim stays valid: the process that has claimed the row sees the new `last_seq` when it records
-- its result. Disabled webhooks get rows too. The process that claims a row checks whether the
-- webhook of the row is disabled.
CREATE OR REPLACE FUNCTION record_webhook_event() RETURNS trigger
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    org text;
    creator text;
    h record;
    first_seq bigint;
BEGIN
    -- Without webhooks, an event costs only this check.
    IF NOT EXISTS (SELECT FROM webhooks) THEN
        RETURN NULL;
    END IF;
    SELECT org_id, created_by_user_id INTO org, creator FROM workspaces WHERE id = NEW.workspace_id;
    -- A loop of small statements takes less time than one statement for all webhooks.
    FOR h IN
        SELECT id, receiver, event_types, creator_user_id, after_position FROM webhooks
        WHERE org_id = org AND task_id IS NULL
        UNION ALL
        SELECT id, receiver, event_types, creator_user_id, after_position FROM webhooks
        WHERE task_id = NEW.task_id
    LOOP
        CONTINUE WHEN NEW.type <> ALL (h.event_types);
        CONTINUE WHEN h.creator_user_id IS NOT NULL AND h.creator_user_id IS DISTINCT FROM creator;
        -- A new delivery begins with the earlier events that were not read from the log yet.
        SELECT seq INTO first_seq FROM events
        WHERE position > greatest(
                h.after_position, (SELECT position FROM log_readers WHERE name = 'webhooks')
            )
            AND workspace_id = NEW.workspace_id
        ORDER BY position LIMIT 1;
        first_seq := coalesce(first_seq, NEW.seq);
        INSERT INTO webhook_deliveries AS d (
            workspace_id, task_id, webhook_id, org_id, receiver, delivered_seq, last_seq, due_at,
            pending_since
        )
        VALUES (
            NEW.workspace_id, coalesce(NEW.task_id, ''), h.id, org, h.receiver, first_seq - 1, NEW.seq,
            NEW.time, NEW.time
        )
        ON CONFLICT (workspace_id, task_id, webhook_id) DO UPDATE
        SET last_seq = EXCLUDED.last_seq,
            due_at = coalesce(d.due_at, EXCLUDED.due_at),
            pending_since = CASE
                WHEN d.due_at IS NULL THEN EXCLUDED.pending_since ELSE d.pending_since
            END,
            attempts = CASE WHEN d.due_at IS NULL THEN 0 ELSE d.attempts END,
            failed = false,
            settled_at = NULL;
    END LOOP;
    RETURN NULL;
END;
$$;
