-- Idempotency keys, and the answers of the first calls with them.

-- name: store_key
-- Waits if another transaction is about to store the same key. Replaces an expired key. Returns no
-- row if the key is taken. `unowned_key` is the key as the previous version stored it, without its
-- owner.
INSERT INTO idempotency_keys AS stored (
    org_id, key, fingerprint, called_at, workspace_id, task_id, answer
)
SELECT
    %(org_id)s, %(key)s, %(fingerprint)s, %(called_at)s, %(workspace_id)s, %(task_id)s, %(answer)s
WHERE NOT EXISTS (
    SELECT FROM idempotency_keys
    WHERE org_id = %(org_id)s AND key = %(unowned_key)s AND fingerprint = %(fingerprint)s
        AND called_at > %(expires_before)s
)
ON CONFLICT (org_id, key) DO UPDATE
SET fingerprint = EXCLUDED.fingerprint,
    called_at = EXCLUDED.called_at,
    workspace_id = EXCLUDED.workspace_id,
    task_id = EXCLUDED.task_id,
    answer = EXCLUDED.answer
WHERE stored.called_at <= %(expires_before)s
RETURNING true;

-- name: prune_keys
-- Each call with a key stores one key and removes up to two expired keys, so expired keys do not
-- accumulate. A call does not wait for another call that removes the same keys.
DELETE FROM idempotency_keys WHERE (org_id, key) IN (
    SELECT org_id, key FROM idempotency_keys
    WHERE called_at <= %(expires_before)s
    ORDER BY called_at LIMIT 2
    FOR UPDATE SKIP LOCKED
);

-- name: find_call
SELECT org_id, key, fingerprint, called_at, workspace_id, task_id, answer
FROM idempotency_keys
WHERE org_id = %(org_id)s AND called_at > %(expires_before)s
    AND (key = %(key)s OR key = %(unowned_key)s AND fingerprint = %(fingerprint)s)
ORDER BY key = %(key)s DESC
LIMIT 1;

-- name: store_answer
UPDATE idempotency_keys SET answer = coalesce(nullif(answer, ''), %(answer)s)
WHERE org_id = %(org_id)s AND key = %(key)s AND task_id = %(task_id)s
RETURNING answer;
