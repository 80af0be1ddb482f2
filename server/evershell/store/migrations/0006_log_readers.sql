-- Each event has a position in one log of all workspaces, and readers of the log note how far they have
-- read (server/evershell/store/event_log.py).
CREATE SEQUENCE event_positions;

CREATE TABLE log_readers (
    name text COLLATE "C" PRIMARY KEY,
    -- The position of the last event that was read. Readers also skip what nobody waits for.
    position bigint NOT NULL DEFAULT 0
);
INSERT INTO log_readers (name) VALUES ('webhooks');

-- A webhook gets the events after this position.
ALTER TABLE webhooks ADD COLUMN after_position bigint NOT NULL DEFAULT 0;
ALTER TABLE webhooks
    ALTER COLUMN after_position SET DEFAULT coalesce(pg_sequence_last_value('event_positions'), 0);
CREATE INDEX webhooks_after_position ON webhooks (after_position);

-- Set by programs that give each event a position. The requests of the previous version do not have it.
ALTER TYPE cancellation_request ADD ATTRIBUTE takes_position boolean;

-- Who may write events may take positions and read the log.
DO $$
DECLARE
    writer regrole;
BEGIN
    FOR writer IN
        SELECT grantee::regrole FROM pg_class, aclexplode(relacl)
        WHERE oid = 'events'::regclass AND privilege_type = 'INSERT' AND grantee NOT IN (relowner, 0)
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE ON log_readers TO %s', writer);
        EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE event_positions TO %s', writer);
    END LOOP;
END;
$$;
