-- When the lease of the workspace ends after a renewal at p_now. A renewal never shortens a lease.
CREATE OR REPLACE FUNCTION extended_lease(
    w workspaces,
    p_now timestamptz,
    p_lease_seconds float8
) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT greatest(w.lease_expires_at, p_now + make_interval(secs => p_lease_seconds))
$$;
