"""A2A (https://a2a-protocol.org, version 1.0): A2AService, on top of the use cases of the core.

docs/a2a.md has the mapping. Push notifications are webhooks of one task.
"""
