-- Renews the leases of agents that have sent a heartbeat, if less than the share p_below_share of
-- the lease remains. Returns each workspace with its current task, in the order of p_ids. NULL
-- stands for a workspace that does not exist.
--
-- Store.renew_lease in server/evershell/core/ports.py has the rules. No statement waits for a lock.
-- A call therefore cannot take part in a deadlock, and a locked workspace does not delay the other
-- heartbeats of the call. Each heartbeat costs at most two reads by primary key. A renewal also
-- costs a lock and an update of the workspace's row.
CREATE OR REPLACE FUNCTION renew_leases(
    p_ids text[],
    p_epochs bigint[],
    p_lease_seconds float8[],
    p_below_share float8,
    p_now timestamptz,
    OUT seconds_left float8,
    OUT w workspaces,
    OUT t tasks
) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN 1..cardinality(p_ids) LOOP
        SELECT * INTO w FROM workspaces WHERE id = p_ids[n];
        IF w.lease_expires_at
            < p_now + make_interval(secs => p_lease_seconds[n] * p_below_share)
        THEN
            PERFORM FROM workspaces
            WHERE id = w.id AND epoch = p_epochs[n] AND status NOT IN ('stopped', 'failed', 'suspended')
            FOR NO KEY UPDATE SKIP LOCKED;
            IF FOUND THEN
                UPDATE workspaces
                SET lease_expires_at = extended_lease(workspaces, p_now, p_lease_seconds[n])
                WHERE id = w.id
                RETURNING * INTO w;
            END IF;
        END IF;
        t := NULL;
        IF w.current_task_id IS NOT NULL THEN
            SELECT * INTO t FROM tasks WHERE id = w.current_task_id;
        END IF;
        seconds_left := extract(epoch FROM w.lease_expires_at - p_now);
        RETURN NEXT;
    END LOOP;
END;
$$;
