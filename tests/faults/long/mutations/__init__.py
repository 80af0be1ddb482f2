"""Breaks the code once in each way, and checks that the invariants or a run of chaos find it."""
