"""Fakes of the core's ports, for tests without PostgreSQL.

tests/contracts runs the same suites on them as on the real implementations.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, Locked
from evershell.core.event import AuditEntry, Origin
from evershell.core.ports import (
    RENEW_BELOW_SHARE,
    CancellationOutcome,
    Leased,
    RecordedCancellation,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.fake_cancel_tasks import FakeCancelTasks
from tests.support.fake_reads import FakeReads

_NOT_UP: Mapping[WorkspaceStatus, CancellationOutcome] = {
    WorkspaceStatus.PROVISIONING: "workspace_provisioning",
    WorkspaceStatus.STOPPING: "workspace_stopped",
    WorkspaceStatus.STOPPED: "workspace_stopped",
    WorkspaceStatus.FAILED: "workspace_failed",
}


def cancellation_outcome(
    permission: Permission, workspace: Workspace | None, task: Task | None, *, is_named: bool
) -> CancellationOutcome:
    """What store/functions/cancellation_outcome.sql decides."""
    if workspace is None:
        return "workspace_not_found"
    if not permission.covers(workspace):
        return "permission_denied"
    if is_named and task is None:
        return "task_not_found"
    if task is not None and task.status.is_terminal:
        return "already_finished"
    if workspace.status in _NOT_UP:
        return _NOT_UP[workspace.status]
    if task is None:
        return "no_active_task"
    return "accepted" if task.cancel is None else "already_requested"


class FakeStore(FakeReads, FakeCancelTasks):
    """Implements core.ports.Store in memory.

    While `unavailable` is true, every method raises UnavailableError.
    """

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
        workspace = self._workspaces.get(workspace_id)
        task = None
        if workspace is not None and workspace.org_id != permission.caller.org_id:
            workspace = None
        if workspace is not None:
            task = self._task_of(workspace, task_id or workspace.current_task_id)
        outcome = cancellation_outcome(permission, workspace, task, is_named=task_id is not None)
        if audit is not None:
            audit_task_id = audit.task_id if task is None else task.id
            self._audit.add(replace(audit, outcome=outcome, task_id=audit_task_id))
        if outcome not in ("accepted", "already_requested"):
            return RecordedCancellation(outcome, workspace, task)
        assert workspace is not None
        locked = Locked(workspace, task)
        requested = task_lifecycle.request_cancel(locked, intent)
        change = self._commit(locked, requested.caused_by(Origin(intent.request_id, trace_id)))
        if not change.events and change.task != task:
            # An earlier `force_at` was taken over.
            self._publish(change.workspace)
        return RecordedCancellation(outcome, change.workspace, change.task)

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
        self._publish(workspace)

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


class FakeSubscription:
    """Implements core.ports.Subscription."""

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


class FakeSubscriptions:
    """Implements core.ports.Subscriptions within one process. The store calls its `publish`."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self._draining = asyncio.Event()
        self._subscriptions: defaultdict[str, set[FakeSubscription]] = defaultdict(set)

    def publish(
        self,
        workspace_id: str,
        *,
        watched: bool = False,
        reconcile: bool = False,
    ) -> None:
        """Wakes the workspace's subscribers."""
        self.published.append(workspace_id)
        for subscription in self._subscriptions[workspace_id]:
            subscription.wake()

    def has_subscribers(self, workspace_id: str) -> bool:
        """Whether anyone waits for a change of the workspace."""
        return bool(self._subscriptions[workspace_id])

    def drain(self) -> None:
        """Ends every wait, now and in the future."""
        self._draining.set()
        for subscribers in self._subscriptions.values():
            for subscription in subscribers:
                subscription.wake()

    @asynccontextmanager
    async def subscribe(self, workspace_id: str) -> AsyncIterator[FakeSubscription]:
        subscription = FakeSubscription(self._draining)
        self._subscriptions[workspace_id].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[workspace_id].discard(subscription)
