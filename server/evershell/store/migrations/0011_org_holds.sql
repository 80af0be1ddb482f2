-- depends: 0010_idempotency_keys

-- The organizations that are on hold, each with who asked for it first. Before it is read or
-- written, the lock of the organization is taken: server/evershell/store/holds.py.
CREATE TABLE org_holds (
    org_id text COLLATE "C" PRIMARY KEY,
    held_by text NOT NULL,
    held_since timestamptz NOT NULL,
    reason text NOT NULL
);
