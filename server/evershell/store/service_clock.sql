-- The time of the service.

-- part: service_time
(clock_timestamp() + (SELECT correction_seconds FROM service_clock) * interval '1 second')

-- name: service_time_now
SELECT {service_time} AS now;

-- name: sample
SELECT
    extract(epoch FROM clock_timestamp())::float8 AS database_seconds, correction_seconds,
    seen_seconds, boot_id, boot_seconds
FROM service_clock;

-- name: record
UPDATE service_clock
SET correction_seconds = correction_seconds + %(seconds)s,
    seen_seconds = %(seen)s,
    boot_id = %(boot_id)s,
    boot_seconds = %(boot)s
WHERE correction_seconds = %(correction)s;
