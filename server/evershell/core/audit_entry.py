"""The audit log: who changed what, or was refused.

Every authenticated call of a method that changes something leaves one entry, which never changes.
An allowed call's entry is committed with its change. CancelTask's entry is always committed with
the check that decided it. All other refusals are collected and stored within a second.
"""

from dataclasses import dataclass
from datetime import datetime

from evershell.workspace.v1 import field_limits

from evershell.core.validation import Fields

# The outcome of an allowed call, except of CancelTask, which has outcomes of its own.
OK = "ok"
# The same for all filters.
MAX_FILTER_CHARACTERS = field_limits.LIST_AUDIT_ENTRIES_ACTOR_ID_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One call. Texts that are not known are empty."""

    # `aud_` and a ULID. Sorts by time.
    id: str
    time: datetime
    # Empty if the call was not authenticated.
    org_id: str
    # The user's id, or the API key's.
    actor_id: str
    # `session` or `api_key`.
    credential_kind: str
    # The API key's id, or the session token's `jti`.
    credential_id: str
    # The name of the method, for example `CancelTask`.
    rpc: str
    # As the caller named it. It need not exist.
    workspace_id: str
    task_id: str
    # The outcome of CancelTask, `dry_run` of CancelTasks, `ok`, or the slug of the error.
    outcome: str
    reason: str
    request_id: str
    trace_id: str
    # The address of the client, without a port.
    client_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries to list. Empty fields match all. Raises Failure validation_error."""

    workspace_id: str = ""
    task_id: str = ""
    actor_id: str = ""
    rpc: str = ""
    outcome: str = ""
    # From this time on.
    start_time: datetime | None = None
    # Before this time.
    end_time: datetime | None = None

    def __post_init__(self) -> None:
        fields = Fields()
        for name in ("workspace_id", "task_id"):
            if value := getattr(self, name):
                fields.identifier(name, value)
        for name in ("actor_id", "rpc", "outcome"):
            fields.text(name, getattr(self, name), max_characters=MAX_FILTER_CHARACTERS)
        if self.start_time and self.end_time and self.start_time >= self.end_time:
            fields.reject("end_time", "must be after start_time")
        fields.check()
