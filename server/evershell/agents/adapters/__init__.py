"""Agents that people have already, as agents of this library: one module for each framework.

Each has a function `agent` that takes the object of the framework and returns a function for `run`.
A module imports its framework only when `agent` is called.
"""
