"""Use case: list the entries of the audit log."""

from collections.abc import Sequence
from typing import Protocol

from evershell.core.caller import Caller
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.ports import AuditLog, Workspaces
from evershell.core.validation import Page


class AuditStore(AuditLog, Workspaces, Protocol):
    """What `list_audit_entries` needs from the store."""


async def list_audit_entries(
    caller: Caller, wanted: AuditFilter, page: Page, store: AuditStore
) -> tuple[Sequence[AuditEntry], str]:
    """A page of the organization's entries, newest first, and the next page's token.

    With `audit:read:own`, returns only entries of workspaces that the caller created. Raises
    Failure permission_denied, or workspace_not_found if the filter names a workspace that does not
    exist.
    """
    permission = caller.permission("audit:read")
    if wanted.workspace_id:
        workspace = await store.get_workspace(
            wanted.workspace_id, caller.org_id
        ) or await store.find_deleted_workspace(wanted.workspace_id, caller.org_id)
        permission.check(workspace, wanted.workspace_id)
    entries = await store.list_audit_entries(permission, wanted, page.before_id, page.size + 1)
    return page.cut(entries)
