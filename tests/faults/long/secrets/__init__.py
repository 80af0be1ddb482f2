"""Searches everything that a stack leaves for credentials, after calls of every kind."""
