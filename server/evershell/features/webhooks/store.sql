-- Webhooks.

-- name: lock_creations
-- Within an organization or a task, webhooks are created one at a time, so that the limit holds.
SELECT pg_advisory_xact_lock(hashtextextended(%(owner_id)s, 1));

-- name: count_webhooks
SELECT count(*) AS number FROM webhooks
WHERE org_id = %(org_id)s AND task_id IS NOT DISTINCT FROM %(task_id)s
    AND (name = %(name)s) IS NOT TRUE;

-- name: lock_workspace
-- The task's events are written only under this lock. So every event either is one of the earlier
-- events, or gets a position after the webhook's `after_position`.
SELECT FROM workspaces WHERE id = %(workspace_id)s FOR UPDATE;

-- name: find_task
-- Locks the task's row, because the removal of old tasks does not lock the workspace. The deletion
-- of a workspace does lock it, and so cannot remove the task meanwhile.
SELECT FROM tasks WHERE id = %(task_id)s AND workspace_id = %(workspace_id)s FOR KEY SHARE;

-- name: last_transaction
-- An event that was not committed yet when a webhook was created may have a position before the
-- webhook's `after_position`. CreateWebhook is therefore answered only after all transactions of that
-- time have ended. It waits for them only a short time, because some, such as a migration, take long.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS id;

-- name: have_ended
SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %(last_id)s::xid8 AS have_ended;

-- name: replace_webhook
DELETE FROM webhooks WHERE task_id = %(task_id)s AND name = %(name)s RETURNING id, created_by;

-- name: record_earlier_events
INSERT INTO webhook_deliveries (
    workspace_id, task_id, webhook_id, org_id, receiver, delivered_seq, last_seq, due_at,
    pending_since
)
SELECT
    workspace_id, task_id, %(webhook_id)s, %(org_id)s, %(receiver)s, min(seq) - 1, max(seq),
    %(created_at)s, %(created_at)s
FROM events
WHERE workspace_id = %(workspace_id)s AND task_id = %(task_id)s AND type = ANY (%(event_types)s)
GROUP BY workspace_id, task_id;

-- name: list_of_org
SELECT {webhook} FROM webhooks WHERE org_id = %(org_id)s AND task_id IS NULL ORDER BY id DESC;

-- name: list_of_task
SELECT {webhook} FROM webhooks
WHERE org_id = %(org_id)s AND workspace_id = %(workspace_id)s AND task_id = %(task_id)s
ORDER BY id DESC;

-- name: delete_webhook
DELETE FROM webhooks WHERE id = %(webhook_id)s AND org_id = %(org_id)s RETURNING {webhook};

-- name: rotate_secret
UPDATE webhooks
SET sealed_previous_secret = CASE
        WHEN previous_secret_expires_at > %(now)s THEN sealed_previous_secret ELSE sealed_secret
    END,
    previous_secret_expires_at = CASE
        WHEN previous_secret_expires_at > %(now)s
        THEN previous_secret_expires_at ELSE %(expires_at)s
    END,
    sealed_secret = %(sealed_secret)s
WHERE id = %(webhook_id)s AND org_id = %(org_id)s
RETURNING {webhook};

-- name: enable_webhook
UPDATE webhooks SET disabled_at = NULL WHERE id = %(webhook_id)s AND org_id = %(org_id)s
RETURNING created_by;

-- name: replay
-- Rows that another transaction has locked are left to the next call, because a call that waits
-- could take part in a deadlock.
UPDATE webhook_deliveries
SET due_at = %(now)s, pending_since = %(now)s, attempts = 0, failed = false, settled_at = NULL
WHERE (workspace_id, task_id, webhook_id) IN (
    SELECT workspace_id, task_id, webhook_id FROM webhook_deliveries
    WHERE webhook_id = %(webhook_id)s AND failed AND task_id = coalesce(%(task_id)s, task_id)
    ORDER BY settled_at
    LIMIT {max_replayed}
    FOR UPDATE SKIP LOCKED
);

-- name: count_failed
SELECT count(*) AS number FROM webhook_deliveries
WHERE webhook_id = %(webhook_id)s AND failed AND task_id = coalesce(%(task_id)s, task_id);

-- name: list_deliveries
SELECT d.* FROM webhook_deliveries d JOIN webhooks h ON h.id = d.webhook_id
WHERE d.workspace_id = %(workspace_id)s AND d.task_id = %(task_id)s
ORDER BY d.webhook_id DESC
LIMIT 100;
