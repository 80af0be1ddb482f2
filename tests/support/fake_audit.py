"""The audit log in memory, and the queue of its entries."""

from collections.abc import Mapping, Sequence

from evershell.core.caller import Permission
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.workspace import Workspace

_EXACT = ("workspace_id", "task_id", "actor_id", "rpc", "outcome")


class FakeAuditLog:
    """The entries, each stored once."""

    def __init__(self) -> None:
        self._entries: dict[str, AuditEntry] = {}

    def add(self, entry: AuditEntry) -> None:
        self._entries.setdefault(entry.id, entry)

    def list(
        self,
        workspaces: Mapping[str, Workspace],
        permission: Permission,
        wanted: AuditFilter,
        before_id: str | None,
    ) -> Sequence[AuditEntry]:
        """See Store.list_audit_entries."""
        return [
            entry
            for entry in sorted(self._entries.values(), key=lambda entry: entry.id, reverse=True)
            if entry.org_id == permission.caller.org_id
            and (before_id is None or entry.id < before_id)
            and all(getattr(wanted, name) in ("", getattr(entry, name)) for name in _EXACT)
            and (wanted.start_time is None or entry.time >= wanted.start_time)
            and (wanted.end_time is None or entry.time < wanted.end_time)
            and (not permission.own_only or covers(permission, workspaces.get(entry.workspace_id)))
        ]


def covers(permission: Permission, workspace: Workspace | None) -> bool:
    """Whether the permission covers a workspace that exists, in the caller's organization."""
    return (
        workspace is not None
        and workspace.org_id == permission.caller.org_id
        and permission.covers(workspace)
    )


class FakeAuditQueue:
    """Implements api.interceptors.auditing.Queue."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        # The ids of the entries that the call itself may already have stored.
        self.uncertain: set[str] = set()
        self.lost = 0

    def put(self, entry: AuditEntry, *, uncertain: bool) -> None:
        self.entries.append(entry)
        if uncertain:
            self.uncertain.add(entry.id)

    def lose(self) -> None:
        self.lost += 1
