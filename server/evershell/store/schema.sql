-- How programs check whether the schema is current.

-- name: list_applied
-- The names of the applied migrations and of the existing functions.
SELECT migration_id AS name FROM _yoyo_migration
UNION ALL
SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace;
