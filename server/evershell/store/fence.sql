-- The fence after a restore of the database.

-- name: try_leader_lock
SELECT pg_try_advisory_xact_lock(%(key)s);

-- name: fence
-- Epochs that were handed out after the backup are unknown, and would be handed out again. The time
-- in seconds is beyond all of them: a workspace gets less than one epoch a second. It is also beyond
-- those that an earlier restore of the same backup has led to.
--
-- A pod that was placed becomes one of another run, so the fleet controller ends its task and starts
-- another agent.
--
-- The parameters are the names of the sessions of workers, and the name that the URL gives to
-- sessions of the programs.
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
