"""All SQL: the only shared state is in PostgreSQL."""
