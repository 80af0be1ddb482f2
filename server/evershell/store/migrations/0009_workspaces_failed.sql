-- transactional: false

-- The failed workspaces of an organization, which ResumeWorkspaces counts. A cancellation changes no
-- column of it, so that its updates stay in place (HOT). An attempt that was interrupted leaves an index
-- that is not valid.
DROP INDEX CONCURRENTLY IF EXISTS workspaces_failed;
CREATE INDEX CONCURRENTLY workspaces_failed ON workspaces (org_id, id) WHERE status = 'failed';
