"""Webhooks: the events of an organization, or of one task, are sent to an address.

docs/webhooks.md describes the requests. A trigger records a delivery with each event
(store/functions/record_webhook_event.sql). Each worker has a process that claims the deliveries
that are due, and sends their events.
"""
