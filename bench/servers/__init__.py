"""The bench's agent, and the servers with which the bench compares the service."""
