"""Starts and ends the pods of workspaces, and calls their agents."""
