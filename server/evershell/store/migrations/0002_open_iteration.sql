-- What the agent has reported of the iteration that runs (OpenIteration in core/task.py), and whether
-- the task ended during an iteration that is not on record.
ALTER TABLE tasks ADD COLUMN open_iteration jsonb;
ALTER TABLE tasks ADD COLUMN iteration_lost boolean NOT NULL DEFAULT false;
