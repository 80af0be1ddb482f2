-- What a program asks a database server before it uses the server.

-- name: session_pid
-- A pooler tells its client a process id that differs from the id of the session that answers.
SELECT pg_backend_pid();

-- name: timeline
-- The name of a WAL file has 24 hexadecimal digits. The first 8 are the timeline.
SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);

-- name: settings_in_force
SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) AS name;
