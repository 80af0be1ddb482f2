-- The id of the root of the task's tree. A task without ancestors is itself a root.
--
-- Lists of a tree (task_lists.sql) do not call this function, because its result does not have the
-- collation of the index. They repeat the expression, so that they can use the index.
CREATE OR REPLACE FUNCTION root_of(t tasks) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(t.ancestor_ids[1], t.id)
$$;
