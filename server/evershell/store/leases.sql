-- Leases of agents.

-- name: renew_leases
SELECT /* renew_leases */ seconds_left, {(w).workspace}, {(t).task}
FROM renew_leases(%(ids)s, %(epochs)s, %(lease_seconds)s, %(below_share)s, %(now)s);
