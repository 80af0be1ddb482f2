-- depends: 0013_task_limits

-- What is added to the clock of the database, so that the time of the service goes on evenly when
-- that clock is set, or when a fail-over leads to a host whose clock differs
-- (server/store/service_clock.py). It has one row.
CREATE TABLE service_clock (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    correction_seconds float8 NOT NULL DEFAULT 0
);
INSERT INTO service_clock DEFAULT VALUES;
