-- Records cancellations. functions/record_cancellation.sql says how.

-- part: result
outcome, {(w).workspace}, {(t).task}, (w).watched_until

-- name: record_cancellations
-- The comment with the name of the statement is at its beginning, because pg_stat_activity shows
-- only the first 1,024 bytes of a statement.
SELECT /* record_cancellations */ {result} FROM record_cancellations(%(requests)s, %(wait)s);
