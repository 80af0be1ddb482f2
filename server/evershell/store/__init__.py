"""The store. PostgreSQL has all state that processes share."""
