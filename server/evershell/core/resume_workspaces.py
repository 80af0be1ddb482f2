"""Use case: resume the failed workspaces of the organization that match a filter, or all of them.

Each workspace is resumed the same way as with ResumeWorkspace. A call resumes its workspaces in one
transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from evershell.core import workspace_lifecycle
from evershell.core.bulk import DRY_RUN, BulkResult, BulkStore, Item, Outcome, once
from evershell.core.caller import Caller, Permission
from evershell.core.change import Change, FirstCall, IdempotencyKey, Locked
from evershell.core.event import Origin
from evershell.core.ports import Clock, Holds, Transitions, Workspaces
from evershell.core.workspace import WorkspaceStatus
from evershell.core.workspace_filter import WorkspaceSelection

# The maximum number of workspaces that one call resumes, which is one transaction. Its worker takes
# about 0.1 ms for each.
MAX_WORKSPACES = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeWorkspaces:
    """The request."""

    wanted: WorkspaceSelection
    # Whether to resume nothing, and only report what the call would do.
    dry_run: bool = False
    # A dry run ignores the key.
    key: IdempotencyKey | None = None
    origin: Origin


class ResumeWorkspacesStore(Workspaces, Transitions, Holds, BulkStore, Protocol):
    """What `resume_workspaces` needs from the store."""


async def resume_workspaces(
    caller: Caller, request: ResumeWorkspaces, store: ResumeWorkspacesStore, clock: Clock
) -> BulkResult:
    """Resumes at most MAX_WORKSPACES failed workspaces, the oldest first; none in a dry run.

    With the key of an earlier call, returns the result of that call. Raises Failure:
    permission_denied, org_on_hold (also for a dry run), idempotency_conflict.
    """
    permission = caller.permission("tasks:write")
    call = None
    if request.key is not None and not request.dry_run:
        call = request.key.first_call(caller, clock(), workspace_id="")
    return await once(
        call, lambda: _resume(permission, request, call, store, clock), store, request.origin.audit
    )


async def _resume(
    permission: Permission,
    request: ResumeWorkspaces,
    call: FirstCall | None,
    store: ResumeWorkspacesStore,
    clock: Clock,
) -> BulkResult:
    org_id, audit, now = permission.caller.org_id, request.origin.audit, clock()
    held = await store.get_hold(org_id)
    if held is not None:
        raise held.refusal()
    matched, ids = await store.match_failed(permission, request.wanted, MAX_WORKSPACES)
    if request.dry_run:
        await store.add_audit_entry(audit and replace(audit, outcome=DRY_RUN))
        return BulkResult(
            matched=matched, results=tuple(Item(each, "", Outcome.MATCHED) for each in ids)
        )

    def resume(locked: Locked) -> Change | None:
        locked.require_no_hold()
        if locked.workspace.status is not WorkspaceStatus.FAILED:
            return None
        return workspace_lifecycle.resume(locked, now)

    def result(changes: Sequence[Change]) -> BulkResult:
        resumed = sorted(each.workspace.id for each in changes)
        return BulkResult(
            matched=matched,
            accepted=len(resumed),
            results=tuple(Item(each, "", Outcome.ACCEPTED) for each in resumed),
        )

    def answered(changes: Sequence[Change]) -> FirstCall | None:
        return call and replace(call, answer=result(changes).as_answer())

    return result(await store.transition_many(ids, resume, org_id, audit, answered))
