-- The outcome of a request to cancel a task. CancelTask and CancelTasks both decide here.
--
-- `w` is the workspace; NULL if the caller's organization has no such workspace. `t` is the named
-- or the current task; NULL if there is no such task. The calling function records the intent only
-- if the outcome is `accepted`. If several outcomes apply, the first one counts. Their order is
-- part of the contract.
--
-- PostgreSQL inlines this expression into the statements that use it.
CREATE OR REPLACE FUNCTION cancellation_outcome(
    w workspaces,
    t tasks,
    p_names_task boolean,
    p_own_only boolean,
    p_user_id text
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN w.id IS NULL THEN 'workspace_not_found'
        -- An API key has no user (NULL), and no creator matches NULL.
        WHEN p_own_only AND (w.created_by_user_id = p_user_id) IS NOT TRUE THEN 'permission_denied'
        WHEN p_names_task AND t.id IS NULL THEN 'task_not_found'
        WHEN t.status IN ('completed', 'failed', 'cancelled', 'delivery_failed')
            THEN 'already_finished'
        -- A provisioning workspace with a task is being woken for this task.
        WHEN w.status = 'provisioning' AND t.id IS NULL THEN 'workspace_provisioning'
        WHEN w.status IN ('stopping', 'stopped') THEN 'workspace_stopped'
        WHEN w.status = 'failed' THEN 'workspace_failed'
        WHEN w.status = 'deleting' THEN 'workspace_deleting'
        WHEN t.id IS NULL THEN 'no_active_task'
        WHEN t.cancel_requested_at IS NOT NULL THEN 'already_requested'
        ELSE 'accepted'
    END
$$;
