"""Entries of the audit log, for the tests of the store."""

from datetime import datetime
from typing import Any

from evershell.core.event import AuditEntry
from evershell.core.ids import new_audit_id
from tests.support.store.examples import NOW, ORG, USER


def audit_entry(time: datetime = NOW, **fields: Any) -> AuditEntry:
    """The entry of a call that arrived at this time."""
    facts = {
        "org_id": ORG,
        "actor_id": USER,
        "credential_kind": "session",
        "credential_id": "jti_1",
        "rpc": "CancelTask",
        "workspace_id": "",
        "task_id": "",
        "outcome": "ok",
        "reason": "because 'of' \\ 🐚",
        "request_id": "req_1",
        "trace_id": "a" * 32,
        "client_address": "192.0.2.1",
        **fields,
    }
    return AuditEntry(id=new_audit_id(time), time=time, **facts)
