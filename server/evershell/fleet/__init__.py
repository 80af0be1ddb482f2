"""Starts and ends pods, and calls their agents."""
