-- The types of events are in event.proto alone, so that a new one needs no migration. Workers of the
-- previous version write only types that the check allowed. A type that a reader does not know is
-- EventType.UNSPECIFIED to it.
ALTER DOMAIN event_type DROP CONSTRAINT event_type_check;
