"""One suite for all adapters, with the real frameworks and an endpoint of a model on loopback."""
