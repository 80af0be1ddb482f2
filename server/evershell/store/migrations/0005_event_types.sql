-- depends: 0004_tasks_in_tree

-- Only event.proto lists the types of events, so that a new type needs no migration. Workers of the
-- previous version write only types that the check allowed. A reader sees a type that it does not
-- know as EventType.UNSPECIFIED.
ALTER DOMAIN event_type DROP CONSTRAINT event_type_check;
