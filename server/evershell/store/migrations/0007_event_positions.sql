-- Programs of the previous version write events without a position. The trigger records the deliveries of
-- these events, so that webhooks get them during an upgrade and after a roll-back. The next version no
-- longer needs it.
ALTER TABLE events ADD COLUMN position bigint;
DROP TRIGGER record_webhook_event ON events;
CREATE TRIGGER record_webhook_event AFTER INSERT ON events
FOR EACH ROW WHEN (NEW.position IS NULL) EXECUTE FUNCTION record_webhook_event();
