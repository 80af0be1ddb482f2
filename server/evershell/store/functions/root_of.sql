-- The id of the root of the tree that the task is in. A task without ancestors is a root.
--
-- Lists of a tree have the expression itself, by which a tree is read from an index: the result of a
-- function does not have the collation of the index (task_lists.sql).
CREATE OR REPLACE FUNCTION root_of(t tasks) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(t.ancestor_ids[1], t.id)
$$;
