"""Breaks the code once in each way, and sees that the machine or a run of chaos finds it."""
