"""Sends the requests of webhooks."""
