"""Fakes of the core's ports, for tests without PostgreSQL.

tests/contracts runs the same suites on them as on the real implementations.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TypeVar, cast

from evershell.core import errors, task_lifecycle
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, KeyTakenError, Locked
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter, Event, EventBatch, NewEvent, Origin
from evershell.core.ports import (
    RENEW_BELOW_SHARE,
    UNDELIVERED,
    CancellationOutcome,
    CancellationRefusal,
    Clock,
    Leased,
    MatchedTask,
    MatchedTasks,
    RecordedCancellation,
    Removed,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.task_filter import (
    EVERY_TASK,
    AllTasks,
    ListFilter,
    OrgListFilter,
    TaskSelection,
)
from evershell.core.task_tree import Parent
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus
from evershell.store.notifications import Publish, publish_to_nobody
from tests.support.fake_audit import FakeAuditLog, covers

_Item = TypeVar("_Item", Workspace, Task)
_WANTED = (
    WorkspaceStatus.PROVISIONING,
    WorkspaceStatus.IDLE,
    WorkspaceStatus.BUSY,
    WorkspaceStatus.STOPPING,
)
_ENDING = (
    WorkspaceStatus.STOPPING,
    WorkspaceStatus.STOPPED,
    WorkspaceStatus.FAILED,
    WorkspaceStatus.DELETING,
)


def cancellation_outcome(
    permission: Permission, workspace: Workspace | None, task: Task | None, *, is_named: bool
) -> CancellationOutcome:
    """Decides the same as store/functions/cancellation_outcome.sql."""
    if workspace is None:
        return "workspace_not_found"
    if not permission.covers(workspace):
        return "permission_denied"
    if is_named and task is None:
        return "task_not_found"
    if task is not None and task.status.is_terminal:
        return "already_finished"
    is_provisioning = workspace.status is WorkspaceStatus.PROVISIONING
    if workspace.status in _ENDING or (is_provisioning and task is None):
        return cast(CancellationRefusal, workspace.refusal().slug)
    if task is None:
        return "no_active_task"
    return "accepted" if task.cancel is None else "already_requested"


class FakeStore:
    """Implements core.ports.Store in memory.

    While `unavailable` is true, every method raises UnavailableError.
    """

    def __init__(
        self,
        publish: Publish = publish_to_nobody,
        lease_clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        """`lease_clock` is the clock of the database."""
        self.unavailable = False
        # What worker_silences returns.
        self.silences: list[float] = [0.0]
        self.lease_clock = lease_clock
        self.publish = publish
        self._workspaces: dict[str, Workspace] = {}
        self._deleted: dict[str, Workspace] = {}
        self._cards: dict[str, AgentCard] = {}
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
        if self._first_call(call) is not None:
            raise KeyTakenError
        self._first_calls[call.org_id, call.key] = call

    def _publish(self, workspace: Workspace) -> None:
        self.publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        self._answer()
        found = self._workspaces.get(workspace_id)
        return None if found is None or org_id not in (None, found.org_id) else found

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        found = await self.get_workspace(workspace_id, org_id)
        return found, self._cards.get(workspace_id, AgentCard())

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Listed[Workspace]:
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
        self,
        workspace_id: str,
        before_id: str | None,
        limit: int,
        wanted: ListFilter = EVERY_TASK,
    ) -> Listed[Task]:
        self._answer()
        return _page(self._matching(workspace_id, wanted), before_id, limit)

    async def count_tasks(self, workspace_id: str, wanted: ListFilter) -> int:
        self._answer()
        return len(self._matching(workspace_id, wanted))

    def _matching(self, workspace_id: str, wanted: ListFilter) -> list[Task]:
        return [
            task
            for task in self._tasks.values()
            if task.workspace_id == workspace_id and wanted.matches(task)
        ]

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        self._answer()
        if workspace_id not in self._workspaces:
            raise errors.workspace_not_found(workspace_id)
        later = [event for event in self._events[workspace_id] if event.seq > after_seq]
        return EventBatch(later[:limit])

    async def list_old_logs(
        self, before: datetime, after_id: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        self._answer()
        page = sorted(each for each in self._workspaces if each > after_id)[:limit]
        old = [each for each in page if any(e.time < before for e in self._events[each][:1])]
        return old, page[-1] if len(page) == limit else None

    async def remove_old_tasks(
        self, workspace_id: str, before: datetime, after_seq: int, limit: int
    ) -> Removed:
        removed = list(
            takewhile(
                lambda event: not self._stays(event, before),
                await self.list_events(workspace_id, after_seq, limit),
            )
        )
        count = len(self._tasks)
        for event in removed:
            self._events[workspace_id].remove(event)
            self._tasks.pop(event.task_id or "", None)
        last_seq = removed[-1].seq if removed else after_seq
        return Removed(count - len(self._tasks), len(removed), last_seq)

    def _stays(self, event: Event, before: datetime) -> bool:
        if event.task_id is None:
            return event.time >= before
        task = self._tasks.get(event.task_id)
        if task is None:
            return False
        return (
            task.completed_at is None
            or task.completed_at >= before
            or any(
                each.root_id == task.root_id and each.completed_at is None
                for each in self._tasks.values()
            )
        )

    async def oldest_end(self) -> datetime | None:
        self._answer()
        ended = [each for each in self._tasks.values() if each.completed_at is not None]
        return min(ended, key=lambda each: each.id).completed_at if ended else None

    async def remove_workspace(self, workspace_id: str) -> bool:
        self._answer()
        removed = self._workspaces.pop(workspace_id, None)
        if removed is not None:
            assert removed.awaits_removal, removed
            self._deleted[workspace_id] = removed
            self._cards.pop(workspace_id, None)
            self._events.pop(workspace_id, None)
            for task in [
                each for each in self._tasks.values() if each.workspace_id == workspace_id
            ]:
                del self._tasks[task.id]
            self.publish(workspace_id, watched=True, reconcile=False)
        return True

    async def find_deleted_workspace(self, workspace_id: str, org_id: str) -> Workspace | None:
        self._answer()
        found = self._deleted.get(workspace_id)
        return found if found is not None and found.org_id == org_id else None

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        self._answer()
        if audit is not None:
            self._audit.add(audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        self._answer()
        workspaces = self._workspaces | self._deleted
        return Listed(self._audit.list(workspaces, permission, wanted, before_id)[:limit])

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        self._answer()
        return [each for each in self._wanted() if each.id > after_id][:limit]

    async def list_unsettled(self) -> Sequence[Workspace]:
        self._answer()
        return [
            each
            for each in sorted(self._workspaces.values(), key=lambda each: each.id)
            if each.awaits_controller or (each.task_unnamed_since or each.agent_breach) is not None
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

    async def worker_silences(self) -> Sequence[float]:
        self._answer()
        return self.silences

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

    async def list_limited_trees(self, now: datetime) -> Sequence[tuple[Workspace, Task]]:
        self._answer()
        trees: dict[str, list[Task]] = {}
        for each in self._tasks.values():
            if each.in_limited_tree:
                trees.setdefault(each.root_id, []).append(each)
        found = []
        for root_id, tasks in trees.items():
            root, usage = self._tasks[root_id], [each.used for each in tasks]
            force_after = root.limits.force_after_seconds
            force_at = None if force_after is None else now + timedelta(seconds=force_after)
            if any(not each.status.is_terminal and _would_change(each, force_at) for each in tasks):
                costs = [each.cost_nanos for each in usage if each.cost_nanos is not None]
                used = replace(
                    root.usage,
                    cost_nanos=sum(costs) if len(costs) == len(usage) else None,
                    input_tokens=sum(each.input_tokens for each in usage),
                    output_tokens=sum(each.output_tokens for each in usage),
                )
                root = replace(root, usage=used, open_iteration=None)
                found.append((self._workspaces[root.workspace_id], root))
        return found

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        self._answer()
        return Counter(each.status for each in self._workspaces.values())

    def _wanted(self) -> list[Workspace]:
        wanted = (each for each in self._workspaces.values() if each.status in _WANTED)
        return sorted(wanted, key=lambda each: each.id)

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
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        self._answer()
        workspace = self._workspaces.get(workspace_id)
        if workspace is None:
            return None
        task = self._task_of(workspace, workspace.current_task_id)
        parent = self._parent(org_id, parent_task_id)
        locked = Locked(workspace, task, self._holds.get(org_id or ""), parent)
        change = decide(locked)
        self._store_key(change.first_call)
        return self._commit(locked, change)

    def _parent(self, org_id: str | None, task_id: str | None) -> Parent | None:
        task = self._tasks.get(task_id or "")
        workspace = None if task is None else self._workspaces[task.workspace_id]
        if task is None or workspace is None or workspace.org_id != org_id:
            return None
        of_root = (each for each in self._tasks.values() if task.root_id in each.ancestor_ids)
        return Parent(workspace, task, sum(not each.status.is_terminal for each in of_root))

    async def cancel_tree(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        workspace = self._workspaces.get(workspace_id)
        named = task_id or (None if workspace is None else workspace.current_task_id)
        is_here = workspace is not None and self._task_of(workspace, named) is not None
        descendants = [
            each
            for each in self._tasks.values()
            if is_here and named in each.ancestor_ids and not each.status.is_terminal
        ]
        for each in descendants:
            at = self._workspaces[each.workspace_id]
            if at.org_id == permission.caller.org_id and not permission.covers(at):
                return RecordedCancellation("permission_denied", at, None)
        recorded = await self.record_cancellation(
            permission, workspace_id, task_id, intent, trace_id, audit
        )
        if recorded.outcome not in ("accepted", "already_requested", "already_finished"):
            return recorded
        ids = [each.id for each in descendants]
        outcomes = await self.cancel_tasks(permission, ids, intent, trace_id)
        return replace(recorded, descendants_cancelled=sum(outcomes.values()))

    async def list_org_tasks(
        self, permission: Permission, wanted: OrgListFilter, before_id: str | None, limit: int
    ) -> Listed[Task]:
        self._answer()
        found = [
            task
            for task in self._tasks.values()
            if covers(permission, self._workspaces[task.workspace_id]) and wanted.matches(task)
        ]
        return _page(found, before_id, limit)

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
        card: AgentCard | None = None,
    ) -> None:
        self._answer()
        if (hold := self._holds.get(workspace.org_id)) is not None:
            raise hold.refusal()
        self._store_key(first_call)
        self._workspaces[workspace.id] = workspace
        if card is not None:
            self._cards[workspace.id] = card
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

    async def find_first_call(self, call: FirstCall) -> FirstCall | None:
        self._answer()
        return self._first_call(call)

    def _first_call(self, call: FirstCall) -> FirstCall | None:
        own, unowned = (
            self._first_calls.get((call.org_id, key)) for key in (call.key, call.unowned_key)
        )
        if unowned is not None and unowned.fingerprint != call.fingerprint:
            unowned = None
        valid = (each for each in (own, unowned) if each and each.called_at > call.expires_before)
        return next(valid, None)

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        self._answer()
        place = (first_call.org_id, first_call.key)
        found = self._first_calls.get(place)
        if found is None or found.task_id != first_call.task_id:
            return answer
        self._first_calls[place] = replace(found, answer=found.answer or answer)
        return self._first_calls[place].answer

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        self._answer()
        found = [
            MatchedTask(at.id, task.id, _accepts(at) and _would_change(task, force_at))
            for at, task in self._open(permission)
            if _matches(wanted, at, task)
        ]
        found.sort(key=lambda each: (not each.is_pending, each.task_id))
        pending = sum(each.is_pending for each in found)
        return MatchedTasks(len(found), pending, found[:limit])

    async def cancel_tasks(
        self,
        permission: Permission,
        task_ids: Sequence[str],
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
        *,
        wait: bool = False,
    ) -> Mapping[str, bool]:
        self._answer()
        outcomes = {}
        for at, task in self._open(permission):
            if task.id not in task_ids or not _accepts(at):
                continue
            locked = Locked(at, task)
            change = task_lifecycle.request_cancel(locked, intent)
            self._commit(locked, change.caused_by(Origin(intent.request_id, trace_id)))
            outcomes[task.id] = bool(change.events)
            if not change.events:
                self.publish(at.id, watched=False, reconcile=False)
        if audit is not None:
            self._audit.add(audit)
        if outcomes:
            self.publish(UNDELIVERED, watched=False, reconcile=True)
        return outcomes

    def _open(self, permission: Permission) -> list[tuple[Workspace, Task]]:
        return [
            (at, self._tasks[at.current_task_id])
            for at in list(self._workspaces.values())
            if at.org_id == permission.caller.org_id
            and permission.covers(at)
            and at.current_task_id is not None
        ]


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


def _page(found: list[_Item], before_id: str | None, limit: int) -> Listed[_Item]:
    newest_first = sorted(found, key=lambda each: each.id, reverse=True)
    older = [each for each in newest_first if before_id is None or each.id < before_id]
    return Listed(older[:limit])


def _accepts(at: Workspace) -> bool:
    """Whether the intent for its task may be recorded."""
    return at.status not in _ENDING


def _would_change(task: Task, force_at: datetime | None) -> bool:
    """Whether a cancellation with this deadline would change the task."""
    return task.cancel is None or task.cancel.is_forced_earlier(force_at)


def _matches(wanted: TaskSelection, at: Workspace, task: Task) -> bool:
    if isinstance(wanted, AllTasks):
        return True
    return (
        (wanted.task_ids is None or task.id in wanted.task_ids)
        and (wanted.workspace_ids is None or at.id in wanted.workspace_ids)
        and wanted.created_by_user_id in (None, at.created_by_user_id)
        and wanted.submitted_by in (None, task.submitted_by)
        and (wanted.submitted_before is None or task.created_at < wanted.submitted_before)
        and (wanted.metadata is None or wanted.metadata.items() <= task.metadata.items())
    )
