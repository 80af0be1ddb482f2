"""Rooms: capabilities that a cancellation does not need.

A room is one folder here, and one line in registry.py. Each program reads certain modules of a room
(registry.py). Two rooms may have modules with the same name only if MODULES has that name.
"""

# The names that modules of any room may have.
MODULES = frozenset(
    {
        "__init__",
        "api",
        "codec",
        "edge",
        "errors",
        "metrics",
        "payload",
        "ports",
        "program",
        "rules",
        "settings",
        "store",
        "use_cases",
        "worker",
    }
)
