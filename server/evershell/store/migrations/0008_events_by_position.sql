-- transactional: false

-- An attempt that was interrupted leaves an index that is not valid.
DROP INDEX CONCURRENTLY IF EXISTS events_by_position;
CREATE INDEX CONCURRENTLY events_by_position ON events (position) WHERE position IS NOT NULL;
