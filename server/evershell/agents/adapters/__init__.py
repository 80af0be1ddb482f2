"""Run agents that are written for other frameworks, with one module for each framework.

Each module has a function `agent` that takes the framework's object and returns a function for
`run`. A module imports its framework only when `agent` is called.
"""
