"""Fakes of the core's ports, for tests without PostgreSQL.

tests/contracts runs the same suites on them as on the real implementations.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from evershell.server.core import task_lifecycle
from evershell.server.core.audit_entry import AuditEntry, AuditFilter
from evershell.server.core.caller import Permission
from evershell.server.core.cancel_task import outcome_of
from evershell.server.core.change import Change, Locked
from evershell.server.core.errors import Failure, UnavailableError
from evershell.server.core.event import Event, NewEvent, Origin
from evershell.server.core.hold import Hold
from evershell.server.core.idempotency_key import FirstCall, KeyTakenError
from evershell.server.core.ports import RENEW_BELOW_SHARE, Clock, Leased, RecordedCancellation
from evershell.server.core.task import CancelIntent, Task
from evershell.server.core.workspace import Workspace, WorkspaceStatus
from evershell.server.store.announce import Announce, announce_to_nobody
from tests.support.audit import FakeAuditLog
from tests.support.fake_batches import FakeBatches

_Listed = TypeVar("_Listed", Workspace, Task)
_WANTED = (
    WorkspaceStatus.PROVISIONING,
    WorkspaceStatus.IDLE,
    WorkspaceStatus.BUSY,
    WorkspaceStatus.STOPPING,
)


class FakeStore(FakeBatches):
    """Implements core.ports.Store in memory.

    While `unavailable` is true, every method raises UnavailableError.
    """

    def __init__(
        self,
        announce: Announce = announce_to_nobody,
        lease_clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        """`lease_clock` is the clock of the database."""
        self.unavailable = False
        self.lease_clock = lease_clock
        self.announce = announce
        self._workspaces: dict[str, Workspace] = {}
        self._tasks: dict[str, Task] = {}
        self._events: defaultdict[str, list[Event]] = defaultdict(list)
        self._audit = FakeAuditLog()
        self._first_calls: dict[tuple[str, str], FirstCall] = {}
        self._holds: dict[str, Hold] = {}

    async def record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        self._answer()
        found = self._record_cancellation(permission, workspace_id, task_id, intent, trace_id)
        if audit is not None:
            try:
                outcome = str(outcome_of(permission, workspace_id, task_id or "", found))
            except Failure as failure:
                outcome = failure.slug
            task = "" if found.task is None else found.task.id
            self._audit.add(replace(audit, outcome=outcome, task_id=task or audit.task_id))
        return found

    def _record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str,
    ) -> RecordedCancellation:
        workspace = self._workspaces.get(workspace_id)
        if workspace is None or workspace.org_id != permission.caller.org_id:
            return RecordedCancellation(workspace=None, task=None, recorded=False)
        task = self._task_of(workspace, task_id or workspace.current_task_id)
        if (
            task is None
            or task.status.is_terminal
            or not workspace.is_up
            or not permission.covers(workspace)
        ):
            return RecordedCancellation(workspace, task, recorded=False)
        locked = Locked(workspace, task)
        change = self._commit(
            locked,
            task_lifecycle.request_cancel(locked, intent).caused_by(
                Origin(intent.request_id, trace_id)
            ),
        )
        if not change.events and change.task != task:
            # An earlier `force_at` was taken over.
            self._announce(change.workspace)
        return RecordedCancellation(change.workspace, change.task, recorded=bool(change.events))

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        held_org_id: str | None = None,
    ) -> Change | None:
        self._answer()
        workspace = self._workspaces.get(workspace_id)
        if workspace is None:
            return None
        task = self._task_of(workspace, workspace.current_task_id)
        locked = Locked(workspace, task, self._holds.get(held_org_id or ""))
        change = decide(locked)
        self._store_key(change.first_call)
        return self._commit(locked, change)

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        self._answer()
        workspace = self._workspaces.get(workspace_id)
        if workspace is None:
            return None
        left = self._seconds_left(workspace)
        is_due = left is not None and left < lease_seconds * RENEW_BELOW_SHARE
        if is_due and not workspace.is_fenced(epoch):
            workspace = self._extend(workspace, lease_seconds)
            self._workspaces[workspace_id] = workspace
            left = self._seconds_left(workspace)
        locked = Locked(workspace, self._task_of(workspace, workspace.current_task_id))
        return Leased(locked, float("-inf") if left is None else left)

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        self._answer()
        if (hold := self._holds.get(workspace.org_id)) is not None:
            raise hold.refusal()
        self._store_key(first_call)
        self._workspaces[workspace.id] = workspace
        if audit is not None:
            self._audit.add(audit)
        self._announce(workspace)

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        self._answer()
        if audit is not None:
            self._audit.add(audit)
        return self._holds.setdefault(hold.org_id, hold)

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        self._answer()
        if audit is not None:
            self._audit.add(audit)
        self._holds.pop(org_id, None)

    async def get_hold(self, org_id: str) -> Hold | None:
        self._answer()
        return self._holds.get(org_id)

    async def count_holds(self) -> int:
        self._answer()
        return len(self._holds)

    async def find_first_call(self, org_id: str, key: str, after: datetime) -> FirstCall | None:
        self._answer()
        found = self._first_calls.get((org_id, key))
        return found if found is not None and found.called_at > after else None

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        self._answer()
        place = (first_call.org_id, first_call.key)
        found = self._first_calls.get(place)
        if found is None or found.task_id != first_call.task_id:
            return answer
        self._first_calls[place] = replace(found, answer=found.answer or answer)
        return self._first_calls[place].answer

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        self._answer()
        found = self._workspaces.get(workspace_id)
        return None if found is None or org_id not in (None, found.org_id) else found

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Sequence[Workspace]:
        self._answer()
        org_id = permission.caller.org_id
        found = [
            each
            for each in self._workspaces.values()
            if each.org_id == org_id and permission.covers(each)
        ]
        return _page(found, before_id, limit)

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        self._answer()
        workspace = self._workspaces.get(workspace_id)
        return None if workspace is None else self._task_of(workspace, task_id)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        workspace = await self.get_workspace(workspace_id, org_id)
        return workspace, None if workspace is None else self._task_of(workspace, task_id)

    async def list_tasks(
        self, workspace_id: str, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        self._answer()
        return _page(
            [task for task in self._tasks.values() if task.workspace_id == workspace_id],
            before_id,
            limit,
        )

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        self._answer()
        return [event for event in self._events[workspace_id] if event.seq > after_seq][:limit]

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        self._answer()
        return self._audit.list(self._workspaces, permission, wanted, before_id)[:limit]

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        self._answer()
        return [each for each in self._wanted() if each.id > after_id][:limit]

    async def list_unsettled(self) -> Sequence[Workspace]:
        self._answer()
        moving = (WorkspaceStatus.PROVISIONING, WorkspaceStatus.STOPPING)
        return [
            each
            for each in sorted(self._workspaces.values(), key=lambda each: each.id)
            if each.status in moving or each.task_unnamed_since is not None
        ]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        self._answer()
        lefts = [(each, self._seconds_left(each)) for each in self._wanted()]
        return [each for each, left in lefts if left is not None and left < 0]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        self._answer()
        if workspace_id is not None:
            workspace = self._workspaces.get(workspace_id)
            return None if workspace is None else self._seconds_left(workspace)
        lefts = (self._seconds_left(each) for each in self._wanted())
        return min((left for left in lefts if left is not None), default=None)

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        self._answer()
        current = [
            (each, self._task_of(each, each.current_task_id))
            for each in sorted(self._workspaces.values(), key=lambda each: each.id)
        ]
        return [
            (each, task) for each, task in current if task is not None and task.cancel is not None
        ]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        self._answer()
        found = []
        for each in self._workspaces.values():
            locked = Locked(each, self._task_of(each, each.current_task_id))
            task = locked.task
            if task is None or task.started_at is None or task.limits.max_duration_seconds is None:
                continue
            reached_at = task.started_at + timedelta(seconds=task.limits.max_duration_seconds)
            if reached_at <= now and task_lifecycle.apply_limits(locked, now).task != task:
                found.append((reached_at, each.id))
        return [workspace_id for _, workspace_id in sorted(found)][:limit]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        self._answer()
        return Counter(each.status for each in self._workspaces.values())

    def _store_key(self, call: FirstCall | None) -> None:
        if call is None:
            return
        stored = self._first_calls.get((call.org_id, call.key))
        if stored is not None and stored.called_at > call.expires_before:
            raise KeyTakenError
        self._first_calls[call.org_id, call.key] = call

    def _answer(self) -> None:
        if self.unavailable:
            raise UnavailableError("the fake database is down")

    def _wanted(self) -> list[Workspace]:
        wanted = (each for each in self._workspaces.values() if each.status in _WANTED)
        return sorted(wanted, key=lambda each: each.id)

    def _seconds_left(self, workspace: Workspace) -> float | None:
        expires_at = workspace.lease_expires_at
        return None if expires_at is None else (expires_at - self.lease_clock()).total_seconds()

    def _extend(self, workspace: Workspace, lease_seconds: float) -> Workspace:
        until = self.lease_clock() + timedelta(seconds=lease_seconds)
        return replace(workspace, lease_expires_at=max(workspace.lease_expires_at or until, until))

    def _task_of(self, workspace: Workspace, task_id: str | None) -> Task | None:
        task = self._tasks.get(task_id or "")
        return task if task is not None and task.workspace_id == workspace.id else None

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
            self._announce(change.workspace)
        return change

    def _announce(self, workspace: Workspace) -> None:
        self.announce(workspace.id, watched=False, reconcile=workspace.awaits_controller)


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


def _page(found: list[_Listed], before_id: str | None, limit: int) -> list[_Listed]:
    newest_first = sorted(found, key=lambda each: each.id, reverse=True)
    return [each for each in newest_first if before_id is None or each.id < before_id][:limit]


class FakeWakeup:
    """Implements core.ports.Wakeup."""

    def __init__(self, draining: asyncio.Event) -> None:
        self._draining = draining
        self._changed = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> bool:
        if not self._draining.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait()
            self._changed.clear()
        return not self._draining.is_set()

    def wake(self) -> None:
        """Ends the current wait."""
        self._changed.set()


class FakeWakeups:
    """Implements core.ports.Wakeups within one process. The store calls its `announce`."""

    def __init__(self) -> None:
        self.announced: list[str] = []
        self._draining = asyncio.Event()
        self._subscriptions: defaultdict[str, set[FakeWakeup]] = defaultdict(set)

    def announce(
        self,
        workspace_id: str,
        *,
        watched: bool = False,
        reconcile: bool = False,
    ) -> None:
        """Wakes the workspace's subscribers."""
        self.announced.append(workspace_id)
        for wakeup in self._subscriptions[workspace_id]:
            wakeup.wake()

    def is_awaited(self, workspace_id: str) -> bool:
        """Whether anyone waits for a change of the workspace."""
        return bool(self._subscriptions[workspace_id])

    def drain(self) -> None:
        """Ends every wait, now and in the future."""
        self._draining.set()
        for subscribers in self._subscriptions.values():
            for wakeup in subscribers:
                wakeup.wake()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str) -> AsyncIterator[FakeWakeup]:
        wakeup = FakeWakeup(self._draining)
        self._subscriptions[workspace_id].add(wakeup)
        try:
            yield wakeup
        finally:
            self._subscriptions[workspace_id].discard(wakeup)
