"""A2AService, over the use cases of the core."""
