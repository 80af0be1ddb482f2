"""A2A (https://a2a-protocol.org, version 1.0): A2AService, on top of the use cases of the core.

docs/a2a.md says how A2A maps to these use cases. Webhooks of one task send the push notifications.
"""
