"""The audit log."""

from evershell.core.caller import Permission
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.validation import Listed
from evershell.store.memory.state import State, covers, page

_EXACT = ("workspace_id", "task_id", "actor_id", "rpc", "outcome")


class AuditLog(State):
    """Stores entries, and lists them."""

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        self._store_audit_entry(audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        workspaces = self.workspaces | self.deleted
        found = (
            entry
            for entry in self.audit.values()
            if entry.org_id == permission.caller.org_id
            and all(getattr(wanted, name) in ("", getattr(entry, name)) for name in _EXACT)
            and (wanted.start_time is None or entry.time >= wanted.start_time)
            and (wanted.end_time is None or entry.time < wanted.end_time)
            and (not permission.own_only or covers(permission, workspaces.get(entry.workspace_id)))
        )
        return page(found, before_id, limit)
