-- depends: 0008_suspension

-- Limits that count for a whole tree. Set for the root and every descendant, so that the open trees
-- with such limits are found even if the root has ended. It never changes, and `status` is in the
-- condition of another index already, so a cancellation updates its row in place (HOT).
ALTER TABLE tasks ADD COLUMN in_limited_tree boolean NOT NULL DEFAULT false;

CREATE INDEX tasks_in_limited_trees ON tasks ((coalesce(ancestor_ids[1], id)))
WHERE in_limited_tree AND status IN ('submitted', 'delivered', 'running');
