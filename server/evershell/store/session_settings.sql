-- The session settings that are stored as defaults of a role, and the role and schema in use.

-- name: defaults
SELECT setconfig FROM pg_db_role_setting
WHERE setrole = session_user::regrole
    AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database());

-- name: current_role
SELECT current_user, current_schema();
