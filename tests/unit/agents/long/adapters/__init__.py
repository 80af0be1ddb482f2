"""One suite for all adapters, with the real frameworks and a model endpoint on loopback."""
