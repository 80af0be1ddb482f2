"""Identifiers: a ULID (https://github.com/ulid/spec) behind a prefix that says of what; they sort by time of creation."""

from ulid import ULID


def new_workspace_id() -> str:
    """`ws_` and a ULID."""
    return f"ws_{ULID()}"


def new_task_id() -> str:
    """`task_` and a ULID."""
    return f"task_{ULID()}"


def new_key_id() -> str:
    """`key_` and a ULID."""
    return f"key_{ULID()}"
