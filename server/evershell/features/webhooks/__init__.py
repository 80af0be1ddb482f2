"""Webhooks: the events of an organization, or of one task, are sent to an address.

docs/webhooks.md describes the requests. Each worker has a process that delivers. One of these
processes at a time reads the log of events, and records what is to be delivered. All of them claim
the deliveries that are due, and send their events.
"""
