-- The schema that programs wait for.

-- name: list_applied
-- The migrations that are applied, and the functions that exist.
SELECT migration_id AS name FROM _yoyo_migration
UNION ALL
SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace;
