"""PostgreSQL: the only shared state."""
