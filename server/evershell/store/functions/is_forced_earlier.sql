-- Whether p_force_at is earlier than the force deadline of a task that is being cancelled. It then
-- replaces that deadline. NULL stands for no deadline.
CREATE OR REPLACE FUNCTION is_forced_earlier(
    t tasks,
    p_force_at timestamptz
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_force_at < coalesce(t.cancel_force_at, 'infinity'), false)
$$;
