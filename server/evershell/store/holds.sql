-- Holds of organizations, and the lock that orders holds and submissions.
--
-- The lock of an organization is an advisory lock, because an organization may have no row. A
-- transaction takes this lock before it locks any row, and keeps the lock until it ends. The lock
-- therefore cannot cause a deadlock. Organizations whose ids have the same hash share a lock, which
-- is harmless. The class is an arbitrary number. Locks with two numbers cannot collide with locks
-- with one number.

-- name: lock_hold
SELECT pg_advisory_xact_lock({lock_class}, hashtext(%(org_id)s));

-- name: share_hold_lock
SELECT pg_advisory_xact_lock_shared({lock_class}, hashtext(%(org_id)s));

-- name: get_hold
-- A separate statement after the lock, so that it sees what was committed before the lock was
-- taken.
SELECT org_id, held_by, held_since, reason FROM org_holds WHERE org_id = %(org_id)s;

-- name: add_hold
INSERT INTO org_holds (org_id, held_by, held_since, reason)
VALUES (%(org_id)s, %(held_by)s, %(held_since)s, %(reason)s)
ON CONFLICT (org_id) DO NOTHING;

-- name: remove_hold
DELETE FROM org_holds WHERE org_id = %(org_id)s;

-- name: count_holds
SELECT count(*) AS number FROM org_holds;
