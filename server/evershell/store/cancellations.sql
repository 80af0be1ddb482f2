-- Records cancellations. functions/record_cancellation.sql says how.

-- part: result
outcome, {(w).workspace}, {(t).task}, (w).watched_until

-- name: record_cancellations
-- Has its name at the beginning, because pg_stat_activity shows only the first 1,024 bytes.
SELECT /* record_cancellations */ {result} FROM record_cancellations(%(requests)s, %(wait)s);
