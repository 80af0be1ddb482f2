-- Calls record_cancellation for each request, in one transaction and one round trip.
--
-- p_requests is a JSON array of requests. Handles them in their order, and returns a row for each.
-- A join instead of the loop took 8 % more CPU for a single request.
CREATE OR REPLACE FUNCTION record_cancellations(
    p_requests json,
    p_wait boolean,
    OUT outcome text,
    OUT w workspaces,
    OUT t tasks
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    request cancellation_request;
BEGIN
    FOR request IN
        SELECT * FROM json_populate_recordset(NULL::cancellation_request, p_requests)
    LOOP
        RETURN QUERY SELECT * FROM record_cancellation(request, p_wait);
    END LOOP;
END;
$$;
