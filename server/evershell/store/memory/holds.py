"""Holds of organizations."""

from evershell.core.change import Hold
from evershell.core.event import AuditEntry
from evershell.store.memory.state import State


class Holds(State):
    """Puts organizations on hold, and releases them."""

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        self._store_audit_entry(audit)
        return self.holds.setdefault(hold.org_id, hold)

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        self._store_audit_entry(audit)
        self.holds.pop(org_id, None)

    async def get_hold(self, org_id: str) -> Hold | None:
        return self.holds.get(org_id)
