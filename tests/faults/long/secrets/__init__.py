"""Makes calls of every kind, then searches everything that the stack leaves for credentials."""
