-- The fence after a restore of the database.

-- name: try_leader_lock
SELECT pg_try_advisory_xact_lock(%(key)s);

-- name: fence
-- The epochs that were assigned after the backup are unknown, and would be assigned again. The
-- number of seconds since 1970 is higher than all of them, because a workspace gets less than one
-- epoch a second. For the same reason it is higher than the epochs that followed an earlier restore
-- of the same backup.
--
-- The new run_id differs from the run of the existing pod, so the fleet controller ends the task of
-- the pod and starts another agent.
--
-- The parameters are names of sessions: `worker` and `calls` for sessions of workers, and
-- `url_name` for the name that the URL gives to its sessions.
WITH programs AS (
    SELECT count(*) AS number FROM pg_stat_activity
    WHERE datname = current_database()
        AND application_name IN ('evershell', %(worker)s, %(calls)s, %(url_name)s)
), fenced AS (
    UPDATE workspaces
    SET epoch = greatest(epoch + 1, extract(epoch FROM clock_timestamp())::bigint),
        run_id = CASE WHEN run_id IS NOT NULL THEN 'fenced' END
    WHERE (SELECT number FROM programs) = 0
    RETURNING id
)
SELECT (SELECT number FROM programs), (SELECT count(*) FROM fenced);
