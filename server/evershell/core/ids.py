"""Identifiers: a prefix that names the kind, then a ULID (https://github.com/ulid/spec).

Identifiers of one kind sort by the time of their creation.
"""

from datetime import datetime

from ulid import ULID


def new_workspace_id(time: datetime | None = None) -> str:
    """`ws_` followed by a ULID of `time`, which defaults to the current time of this machine."""
    return f"ws_{_ulid(time)}"


def new_task_id(time: datetime | None = None) -> str:
    """`task_` followed by a ULID of `time`, which defaults to the current time of this machine."""
    return f"task_{_ulid(time)}"


def new_org_id() -> str:
    """`org_` followed by a ULID."""
    return f"org_{ULID()}"


def new_key_id() -> str:
    """`key_` followed by a ULID."""
    return f"key_{ULID()}"


def new_webhook_id(time: datetime) -> str:
    """`wh_` followed by a ULID of this time."""
    return f"wh_{_ulid(time)}"


def new_audit_id(time: datetime) -> str:
    """`aud_` followed by a ULID of this time."""
    return f"aud_{ULID.from_datetime(time)}"


def first_audit_id(time: datetime) -> str:
    """Sorts after all audit ids of earlier milliseconds, and before all other audit ids."""
    return f"aud_{str(ULID.from_datetime(time))[:10]}"


def _ulid(time: datetime | None) -> ULID:
    return ULID() if time is None else ULID.from_datetime(time)
