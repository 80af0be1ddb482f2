-- What a program asks a server of the database before it uses it.

-- name: session_pid
-- A pooler tells its clients a process id that differs from the id of the answering session.
SELECT pg_backend_pid();

-- name: timeline
-- The first 8 of the 24 hexadecimal digits of a WAL file are the timeline.
SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);

-- name: settings_in_force
SELECT name, current_setting(name) FROM unnest(%(names)s::text[]) AS name;
