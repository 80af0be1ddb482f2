"""Identifiers: a prefix that names the kind, then a ULID (https://github.com/ulid/spec).

They sort by time of creation.
"""

from ulid import ULID


def new_workspace_id() -> str:
    """`ws_` followed by a ULID."""
    return f"ws_{ULID()}"


def new_task_id() -> str:
    """`task_` followed by a ULID."""
    return f"task_{ULID()}"


def new_org_id() -> str:
    """`org_` followed by a ULID."""
    return f"org_{ULID()}"


def new_key_id() -> str:
    """`key_` followed by a ULID."""
    return f"key_{ULID()}"
