"""The rows of the store in memory, and how a change is committed to them."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from evershell.core.change import Change, FirstCall, Hold, KeyTakenError, Locked
from evershell.core.errors import UnavailableError
from evershell.core.event import Event, NewEvent
from evershell.core.ports import Clock
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.store.notifications import Publish, publish_to_nobody
from tests.support.audit import FakeAuditLog


class FakeRows:
    """What the parts of FakeStore share."""

    def __init__(
        self,
        publish: Publish = publish_to_nobody,
        lease_clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        """`lease_clock` is the clock of the database."""
        self.unavailable = False
        self.lease_clock = lease_clock
        self.publish = publish
        self._workspaces: dict[str, Workspace] = {}
        self._tasks: dict[str, Task] = {}
        self._events: defaultdict[str, list[Event]] = defaultdict(list)
        self._audit = FakeAuditLog()
        self._first_calls: dict[tuple[str, str], FirstCall] = {}
        self._holds: dict[str, Hold] = {}

    def _answer(self) -> None:
        if self.unavailable:
            raise UnavailableError("the fake database is down")

    def _task_of(self, workspace: Workspace, task_id: str | None) -> Task | None:
        task = self._tasks.get(task_id or "")
        return task if task is not None and task.workspace_id == workspace.id else None

    def _seconds_left(self, workspace: Workspace) -> float | None:
        expires_at = workspace.lease_expires_at
        return None if expires_at is None else (expires_at - self.lease_clock()).total_seconds()

    def _extend(self, workspace: Workspace, lease_seconds: float) -> Workspace:
        until = self.lease_clock() + timedelta(seconds=lease_seconds)
        return replace(workspace, lease_expires_at=max(workspace.lease_expires_at or until, until))

    def _commit(self, locked: Locked, change: Change) -> Change:
        workspace_id, seq = locked.workspace.id, locked.workspace.last_seq
        change = replace(
            change, workspace=replace(change.workspace, last_seq=seq + len(change.events))
        )
        if change.lease_seconds is not None:
            leased = self._extend(change.workspace, change.lease_seconds)
            change = replace(change, workspace=leased)
        self._workspaces[workspace_id] = change.workspace
        if change.task is not None:
            self._tasks[change.task.id] = change.task
        self._events[workspace_id] += [
            _entry(workspace_id, at, new) for at, new in enumerate(change.events, seq + 1)
        ]
        if change.audit is not None:
            self._audit.add(change.audit)
        if change.events or change.workspace.status is not locked.workspace.status:
            self._publish(change.workspace)
        return change

    def _store_key(self, call: FirstCall | None) -> None:
        if call is None:
            return
        stored = self._first_calls.get((call.org_id, call.key))
        if stored is not None and stored.called_at > call.expires_before:
            raise KeyTakenError
        self._first_calls[call.org_id, call.key] = call

    def _publish(self, workspace: Workspace) -> None:
        self.publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)


def _entry(workspace_id: str, seq: int, new: NewEvent) -> Event:
    return Event(
        workspace_id=workspace_id,
        seq=seq,
        type=new.type,
        time=new.time,
        payload=new.payload,
        task_id=new.task_id,
        origin=new.origin,
    )
