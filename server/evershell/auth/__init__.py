"""Authenticates callers and agents by their credentials."""
