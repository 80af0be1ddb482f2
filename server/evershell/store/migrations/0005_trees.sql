-- depends: 0003_agent_cards

-- Trees of tasks (docs/decisions/0043-trees.md).

-- From the root of the tree to the parent; NULL for a task without a parent. It never changes, so a
-- cancellation updates its row in place (HOT).
ALTER TABLE tasks ADD COLUMN ancestor_ids text[] COLLATE "C";

-- The tasks of a tree, those that have not ended without the others.
CREATE INDEX tasks_of_root ON tasks ((ancestor_ids[1]), status) WHERE ancestor_ids IS NOT NULL;
CREATE INDEX tasks_of_parent ON tasks ((ancestor_ids[cardinality(ancestor_ids)]), id)
WHERE ancestor_ids IS NOT NULL;
