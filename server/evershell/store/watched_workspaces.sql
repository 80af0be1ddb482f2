-- The marks of workspaces: a process may have subscribers for a workspace until `watched_until`.

-- name: set_marks
-- Skips locked rows, so that the other rows of the batch do not wait for them and no deadlock is
-- possible. Does not write a mark again that still lasts long enough. The marks need not survive a
-- crash of the database, so the commit does not wait for the disk.
WITH due AS (
    SELECT id FROM workspaces
    WHERE id = ANY (%(ids)s)
        AND coalesce(watched_until < %(now)s + %(kept)s * interval '1 second', true)
    FOR NO KEY UPDATE SKIP LOCKED
), marked AS (
    UPDATE workspaces SET watched_until = %(now)s + %(mark)s * interval '1 second'
    FROM due WHERE workspaces.id = due.id
    RETURNING workspaces.id
)
SELECT id, set_config('synchronous_commit', 'off', true) FROM marked
UNION ALL
SELECT id, '' FROM workspaces
WHERE id = ANY (%(ids)s) AND watched_until >= %(now)s + %(kept)s * interval '1 second';
