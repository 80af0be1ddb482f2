-- Whether p_force_at replaces the force deadline of a task whose cancellation is recorded: the
-- earliest deadline wins. NULL stands for no deadline.
CREATE OR REPLACE FUNCTION is_forced_earlier(
    t tasks,
    p_force_at timestamptz
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_force_at < coalesce(t.cancel_force_at, 'infinity'), false)
$$;
