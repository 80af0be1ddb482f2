"""Adapters for agents that are written for other frameworks, one module for each framework.

The function `agent` of each adapter returns a function for `run`. An adapter imports its framework
only when an agent runs.
"""
