"""The servers that the bench compares the service with, and its agent."""
