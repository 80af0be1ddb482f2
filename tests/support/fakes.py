"""Fakes of the core's ports, for tests without PostgreSQL.

tests/contracts runs the same suites on them as on the real implementations.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime

from evershell.core import task_lifecycle
from evershell.core.caller import Permission
from evershell.core.cancel_task import outcome_of
from evershell.core.change import Change, FirstCall, Hold, Locked
from evershell.core.errors import Failure
from evershell.core.event import AuditEntry, Origin
from evershell.core.ports import RENEW_BELOW_SHARE, Leased, RecordedCancellation
from evershell.core.task import CancelIntent
from evershell.core.workspace import Workspace
from tests.support.fake_batches import FakeBatches
from tests.support.fake_reads import FakeReads


class FakeStore(FakeReads, FakeBatches):
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
            self._publish(change.workspace)
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
