-- transactional: false

-- The descendants of a task, newest first, so that a page of them reads no more than it shows. Only
-- changes of the status of a child write it: a cancellation updates its row in place (HOT). Writes go on
-- while it is created. An attempt that was interrupted leaves an index that is not valid.
DROP INDEX CONCURRENTLY IF EXISTS tasks_in_tree;
CREATE INDEX CONCURRENTLY tasks_in_tree ON tasks ((coalesce(ancestor_ids[1], id)), id)
WHERE ancestor_ids IS NOT NULL;
