"""Logs, metrics and traces of every program."""
