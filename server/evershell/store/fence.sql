-- The fence after a restore of the database.

-- name: try_leader_lock
SELECT pg_try_advisory_xact_lock(%(key)s);

-- name: fence
-- Epochs that were assigned after the backup are unknown, and would be assigned again. The time in
-- seconds is higher than all of them, because a workspace gets less than one epoch a second. For the
-- same reason it is higher than the epochs of an earlier restore of the same backup.
--
-- A pod that was placed now belongs to another run, so the fleet controller ends its task and starts
-- another agent.
--
-- The parameters are the names of the workers' sessions, and the name that the URL gives to the
-- programs' sessions.
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
