"""Workspaces, tasks and callers for the tests of the store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from evershell.core import task_lifecycle
from evershell.core.caller import Caller, CredentialKind, Permission
from evershell.core.change import FirstCall, unchanged
from evershell.core.ids import new_task_id, new_workspace_id
from evershell.core.ports import Store
from evershell.core.task import CancelIntent, Task, TaskEnded, TaskStatus
from evershell.core.workspace import Workspace, WorkspaceStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
ORG = "org_a"
USER = "user_1"


def permission(
    *, org_id: str = ORG, user_id: str | None = USER, own_only: bool = False
) -> Permission:
    """The permission of a caller. If `user_id` is None, the caller has an API key."""
    kind = CredentialKind.API_KEY if user_id is None else CredentialKind.SESSION
    return Permission(
        Caller(org_id, user_id or "key_1", kind, frozenset()), ("workspace:write",), own_only
    )


def intent(
    reason: str = "because",
    *,
    force_after_seconds: float | None = None,
    request_id: str = "req_1",
    requested_by: str = USER,
) -> CancelIntent:
    force_at = None if force_after_seconds is None else NOW + timedelta(seconds=force_after_seconds)
    return CancelIntent(
        requested_by=requested_by,
        credential_kind="session",
        requested_at=NOW,
        reason=reason,
        request_id=request_id,
        force_at=force_at,
        force_requested_by=None if force_at is None else requested_by,
    )


def workspace(
    status: WorkspaceStatus = WorkspaceStatus.IDLE, *, org_id: str = ORG, user_id: str | None = USER
) -> Workspace:
    return Workspace(
        id=new_workspace_id(),
        org_id=org_id,
        name="a wörkspace 🐚",
        status=status,
        created_by_user_id=user_id,
        created_at=NOW,
        updated_at=NOW,
    )


def first_call(key: str = "key", called_at: datetime = NOW, **fields: Any) -> FirstCall:
    """The first call with an idempotency key."""
    facts = {"org_id": ORG, "fingerprint": b"\0\xff", "workspace_id": "ws_1", **fields}
    return FirstCall(key=key, called_at=called_at, **facts)


def task(workspace_id: str) -> Task:
    return Task(
        id=new_task_id(),
        workspace_id=workspace_id,
        description="echo 'ü'",
        metadata={"a": "b"},
        created_at=NOW,
    )


async def with_task(
    store: Store, *, org_id: str = ORG, user_id: str | None = USER
) -> tuple[Workspace, Task]:
    """Creates a busy workspace. Returns the workspace and its task as committed."""
    idle = workspace(org_id=org_id, user_id=user_id)
    await store.create_workspace(idle)
    submitted = task(idle.id)
    change = await store.transition(
        idle.id, lambda locked: task_lifecycle.submit(locked, submitted, USER)
    )
    assert change is not None and change.task is not None
    return change.workspace, change.task


async def set_status(store: Store, workspace_id: str, status: WorkspaceStatus) -> None:
    """Sets the status of a workspace, without the checks of the lifecycle."""
    await store.transition(
        workspace_id,
        lambda locked: replace(
            unchanged(locked), workspace=replace(locked.workspace, status=status)
        ),
    )


async def complete(store: Store, busy: Workspace, task_id: str, at: datetime = NOW) -> None:
    """Commits the end of the task, as its agent would do."""
    ending = TaskEnded(status=TaskStatus.COMPLETED, result="done")
    await store.transition(
        busy.id, lambda locked: task_lifecycle.commit(locked, busy.epoch, task_id, [ending], at)
    )
