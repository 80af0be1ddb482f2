"""Makes calls of every kind, then searches for credentials in everything that the stack leaves."""
