"""Use cases: create, read, stop, resume and delete workspaces."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from evershell.workspace.v1 import field_limits

from evershell.core import errors, workspace_lifecycle
from evershell.core.caller import Caller, Permission
from evershell.core.change import Change, IdempotencyKey, KeyTakenError, Locked
from evershell.core.errors import AgentUnreachableError, Failure
from evershell.core.event import Origin
from evershell.core.idempotency import earlier_call, read_again
from evershell.core.ids import new_workspace_id
from evershell.core.ports import Agents, AuditLog, Clock, IdempotencyKeys, Transitions, Workspaces
from evershell.core.task import CancelIntent
from evershell.core.validation import Fields, Page, check_identifiers
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus

MAX_NAME_CHARACTERS = field_limits.CREATE_WORKSPACE_NAME_MAX
STOP_REASON = "workspace stopped"
DELETE_REASON = "workspace deleted"


class WorkspaceStore(Workspaces, Transitions, IdempotencyKeys, AuditLog, Protocol):
    """What creating and deleting workspaces needs from the store."""


async def create_workspace(
    caller: Caller,
    name: str,
    origin: Origin,
    store: WorkspaceStore,
    clock: Clock,
    key: IdempotencyKey | None = None,
    card: AgentCard | None = None,
) -> Workspace:
    """Records a workspace. The fleet controller then starts its agent.

    With the key of an earlier call, returns the same answer: the workspace as it was created.
    Raises Failure: validation_error, permission_denied, org_on_hold, idempotency_conflict, and
    workspace_not_found if the workspace has been deleted.
    """
    fields = Fields()
    fields.text("name", name, max_characters=MAX_NAME_CHARACTERS)
    fields.check()
    # The caller becomes the creator, so a scope that ends with `:own` is enough.
    permission = caller.permission("workspace:write")
    now = clock()
    workspace = _new(new_workspace_id(now), caller.org_id, name, caller.user_id, now)
    audit = origin.audit and replace(origin.audit, workspace_id=workspace.id)
    call = None
    if key is not None:
        call = key.first_call(caller, workspace.created_at, workspace.id)
    try:
        await store.create_workspace(workspace, audit, call, card)
    except (Failure, KeyTakenError) as refusal:
        first = await earlier_call(call, refusal, store)
        recorded = (await read_again(first, permission, origin, store)).workspace
        return _new(
            recorded.id,
            recorded.org_id,
            recorded.name,
            recorded.created_by_user_id,
            recorded.created_at,
        )
    return workspace


def _new(
    workspace_id: str, org_id: str, name: str, user_id: str | None, created_at: datetime
) -> Workspace:
    return Workspace(
        id=workspace_id,
        org_id=org_id,
        name=name,
        status=WorkspaceStatus.PROVISIONING,
        created_by_user_id=user_id,
        created_at=created_at,
        updated_at=created_at,
    )


async def get_workspace(caller: Caller, workspace_id: str, store: Workspaces) -> Workspace:
    """Reads one workspace.

    Raises Failure: validation_error, permission_denied, workspace_not_found.
    """
    check_identifiers(workspace_id=workspace_id)
    permission = caller.permission("workspace:read")
    return permission.check(await store.get_workspace(workspace_id, caller.org_id), workspace_id)


async def list_workspaces(
    caller: Caller, page: Page, store: Workspaces, workspace_ids: Sequence[str] = ()
) -> tuple[Sequence[Workspace], str]:
    """A page of the workspaces that the caller may read, newest first, and the next page's token.

    The token is empty on the last page. If `workspace_ids` is not empty, lists only these
    workspaces. Raises Failure: validation_error, permission_denied.
    """
    fields = Fields()
    fields.identifiers(
        "workspace_ids", workspace_ids, field_limits.LIST_WORKSPACES_WORKSPACE_IDS_MAX
    )
    fields.check()
    permission = caller.permission("workspace:read")
    listed = await store.list_workspaces(permission, page.before_id, page.size + 1, workspace_ids)
    return page.cut(listed)


async def stop_workspace(
    caller: Caller,
    workspace_id: str,
    origin: Origin,
    store: Transitions,
    agents: Agents,
    clock: Clock,
) -> Workspace:
    """Begins to stop a workspace.

    Raises Failure: validation_error, permission_denied, workspace_not_found, workspace_failed,
    workspace_deleting.
    """
    check_identifiers(workspace_id=workspace_id)
    permission = caller.permission("workspace:write")
    intent = _intent(caller, STOP_REASON, origin, clock)
    change = await _change(
        permission,
        workspace_id,
        store,
        lambda locked: workspace_lifecycle.request_stop(locked, intent).caused_by(origin),
    )
    await _signal(change, agents)
    return change.workspace


async def delete_workspace(
    caller: Caller,
    workspace_id: str,
    origin: Origin,
    store: WorkspaceStore,
    agents: Agents,
    clock: Clock,
) -> Workspace:
    """Begins to delete a workspace. The fleet controller then removes it.

    A repeat gives the same answer, even after the workspace is gone. Raises Failure:
    validation_error, permission_denied, workspace_not_found.
    """
    check_identifiers(workspace_id=workspace_id)
    permission = caller.permission("workspace:write")
    intent = _intent(caller, DELETE_REASON, origin, clock)
    change = await _change_existing(
        permission,
        workspace_id,
        store,
        lambda locked: workspace_lifecycle.request_delete(locked, intent).caused_by(origin),
    )
    if change is None:
        deleted = await store.find_deleted_workspace(workspace_id, caller.org_id)
        workspace = permission.check(deleted, workspace_id)
        await store.add_audit_entry(origin.audit)
        return workspace
    await _signal(change, agents)
    return change.workspace


def _intent(caller: Caller, reason: str, origin: Origin, clock: Clock) -> CancelIntent:
    return CancelIntent(
        requested_by=caller.actor_id,
        credential_kind=caller.credential_kind,
        requested_at=clock(),
        reason=reason,
        request_id=origin.request_id,
    )


async def _signal(change: Change, agents: Agents) -> None:
    """Tells the agent that its task is cancelled, if the workspace is stopping or being deleted.

    This is only a latency optimisation: an agent that cannot be reached receives the intent with a
    later reply, or the fleet controller ends the agent after the grace period.
    """
    if change.task is not None and not change.workspace.is_up:
        with suppress(AgentUnreachableError):
            await agents.cancel_task(change.workspace, change.task)


async def resume_workspace(
    caller: Caller, workspace_id: str, origin: Origin, store: Transitions, clock: Clock
) -> Workspace:
    """Requests a new agent in a new epoch.

    Raises Failure: validation_error, permission_denied, workspace_not_found, org_on_hold,
    invalid_state, workspace_deleting.
    """
    check_identifiers(workspace_id=workspace_id)
    # A caller who may submit tasks may also resume a workspace.
    permission = caller.permission("workspace:write", "tasks:write")

    def resume(locked: Locked) -> Change:
        locked.require_no_hold()
        return workspace_lifecycle.resume(locked, clock()).caused_by(origin)

    change = await _change(permission, workspace_id, store, resume, caller.org_id)
    return change.workspace


async def _change(
    permission: Permission,
    workspace_id: str,
    store: Transitions,
    decide: Callable[[Locked], Change],
    held_org_id: str | None = None,
) -> Change:
    change = await _change_existing(permission, workspace_id, store, decide, held_org_id)
    if change is None:
        raise errors.workspace_not_found(workspace_id)
    return change


async def _change_existing(
    permission: Permission,
    workspace_id: str,
    store: Transitions,
    decide: Callable[[Locked], Change],
    held_org_id: str | None = None,
) -> Change | None:
    """The change; None if there is no such workspace."""

    def checked(locked: Locked) -> Change:
        permission.check(locked.workspace, workspace_id)
        return decide(locked)

    return await store.transition(workspace_id, checked, held_org_id)
