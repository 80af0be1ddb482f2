-- Whether the task has not ended. Some indexes have the same condition. PostgreSQL inlines this
-- expression into the statements that call it, so these statements can use the indexes.
CREATE OR REPLACE FUNCTION is_open(t tasks) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT t.status IN ('submitted', 'delivered', 'running')
$$;
