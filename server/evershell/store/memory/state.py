"""What the store in memory holds, and how it commits a change."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, KeyTakenError, Locked
from evershell.core.event import AuditEntry, Event, NewEvent
from evershell.core.ports import Clock
from evershell.core.task import Task
from evershell.core.validation import HasId, Listed
from evershell.core.workspace import AgentCard, Workspace
from evershell.store.publish import Publish, publish_to_nobody

_Item = TypeVar("_Item", bound=HasId)


class State:
    """The rows, by id. Each part of MemoryStore inherits this class.

    Methods await only each other, so no other call runs in between: each call is one transaction.
    Nothing is rolled back, so a method refuses before it changes anything.
    """

    def __init__(self, clock: Clock, publish: Publish = publish_to_nobody) -> None:
        """`clock` is for leases. `publish` tells watchers and controllers of commits."""
        self.clock = clock
        self.publish = publish
        self.workspaces: dict[str, Workspace] = {}
        # The removed workspaces, as they were before their removal.
        self.deleted: dict[str, Workspace] = {}
        self.cards: dict[str, AgentCard] = {}
        self.tasks: dict[str, Task] = {}
        # The events of each workspace, in order.
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        # The position of the last event of all workspaces. No event has the position 1.
        self.position = 1
        self.audit: dict[str, AuditEntry] = {}
        # The keys are an organization and an idempotency key.
        self.first_calls: dict[tuple[str, str], FirstCall] = {}
        # The keys are organizations.
        self.holds: dict[str, Hold] = {}

    def _task_of(self, workspace: Workspace, task_id: str | None) -> Task | None:
        task = self.tasks.get(task_id or "")
        return task if task is not None and task.workspace_id == workspace.id else None

    def _locked(self, workspace: Workspace) -> Locked:
        return Locked(workspace, self._task_of(workspace, workspace.current_task_id))

    def _seconds_left(self, workspace: Workspace) -> float | None:
        expires_at = workspace.lease_expires_at
        return None if expires_at is None else (expires_at - self.clock()).total_seconds()

    def _with_lease(self, workspace: Workspace, lease_seconds: float) -> Workspace:
        """The workspace with a lease of this length. A lease that lasts longer stays as it is."""
        until = self.clock() + timedelta(seconds=lease_seconds)
        return replace(workspace, lease_expires_at=max(workspace.lease_expires_at or until, until))

    def _commit(self, locked: Locked, change: Change) -> Change:
        """Stores the change. Publishes it if it has events or a new status of the workspace.

        Returns the change with the new `last_seq` and lease.
        """
        workspace_id, seq = locked.workspace.id, locked.workspace.last_seq
        change = replace(
            change, workspace=replace(change.workspace, last_seq=seq + len(change.events))
        )
        if change.lease_seconds is not None:
            leased = self._with_lease(change.workspace, change.lease_seconds)
            change = replace(change, workspace=leased)
        self.workspaces[workspace_id] = change.workspace
        if change.task is not None:
            self.tasks[change.task.id] = change.task
        for at, new in enumerate(change.events, seq + 1):
            self.position += 1
            self.events[workspace_id].append(_stored(workspace_id, at, new, self.position))
        self._store_audit_entry(change.audit)
        if change.events or change.workspace.status is not locked.workspace.status:
            self._publish(change.workspace)
        return change

    def _publish(self, workspace: Workspace) -> None:
        self.publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    def _store_audit_entry(self, audit: AuditEntry | None) -> None:
        """Stores the entry, if there is one, unless it is stored already."""
        if audit is not None:
            self.audit.setdefault(audit.id, audit)

    def _store_key(self, call: FirstCall | None) -> None:
        """Stores the key of the call, if there is one. Raises KeyTakenError."""
        if call is None:
            return
        if self._first_call(call) is not None:
            raise KeyTakenError
        self.first_calls[call.org_id, call.key] = call

    def _first_call(self, call: FirstCall) -> FirstCall | None:
        """See IdempotencyKeys.find_first_call in core/ports.py."""
        own, unowned = (
            self.first_calls.get((call.org_id, key)) for key in (call.key, call.unowned_key)
        )
        if unowned is not None and unowned.fingerprint != call.fingerprint:
            unowned = None
        valid = (each for each in (own, unowned) if each and each.called_at > call.expires_before)
        return next(valid, None)


def _stored(workspace_id: str, seq: int, new: NewEvent, position: int) -> Event:
    return Event(
        workspace_id=workspace_id,
        seq=seq,
        type=new.type,
        time=new.time,
        payload=new.payload,
        task_id=new.task_id,
        origin=new.origin,
        position=position,
    )


def page(found: Iterable[_Item], before_id: str | None, limit: int) -> Listed[_Item]:
    """Up to `limit` items, newest first. If `before_id` is given, only items with a lower id."""
    newest_first = sorted(found, key=lambda each: each.id, reverse=True)
    older = [each for each in newest_first if before_id is None or each.id < before_id]
    return Listed(older[:limit])


def covers(permission: Permission, workspace: Workspace | None) -> bool:
    """Whether the workspace exists in the caller's organization and the permission covers it."""
    return (
        workspace is not None
        and workspace.org_id == permission.caller.org_id
        and permission.covers(workspace)
    )
