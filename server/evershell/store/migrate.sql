-- What `migrate` asks the database, in addition to the migrations and the functions.

-- name: try_lock
SELECT pg_try_advisory_lock(%(key)s);

-- name: list_tables
-- The tables and views in the current schema. Leaves out what belongs to extensions, and the tables
-- with the records of migrations.
SELECT relname FROM pg_class
WHERE relnamespace = current_schema()::regnamespace
    AND relkind IN ('r', 'p', 'v', 'm', 'f')
    AND relname !~ '^_?yoyo_'
    AND NOT EXISTS (
        SELECT FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
    )
ORDER BY relname;

-- name: name_schema
SELECT current_database(), current_schema();

-- name: find_migrations
SELECT to_regclass(quote_ident(current_schema()) || '._yoyo_migration');

-- name: has_migration
SELECT FROM _yoyo_migration WHERE migration_id = %(migration_id)s;

-- name: list_migrations
SELECT migration_id FROM _yoyo_migration;

-- name: record_migration
INSERT INTO _yoyo_migration
VALUES (
    encode(sha256(convert_to(%(migration_id)s, 'UTF8')), 'hex'),
    %(migration_id)s,
    now() AT TIME ZONE 'UTC'
);

-- name: stored_functions
SELECT oid::regprocedure::text, obj_description(oid, 'pg_proc') FROM pg_proc
WHERE proname = %(name)s AND pronamespace = current_schema()::regnamespace;
