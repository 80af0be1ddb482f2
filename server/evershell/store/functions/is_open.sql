-- Whether the task has not ended. Also the condition of indexes: PostgreSQL inlines this expression into
-- the statements that use it, so that they use these indexes.
CREATE OR REPLACE FUNCTION is_open(t tasks) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT t.status IN ('submitted', 'delivered', 'running')
$$;
