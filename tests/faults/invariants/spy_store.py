"""A wrapper of the store under test that observes each commit and can inject failures."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import TypeVar

from evershell.core.audit_entry import AuditEntry, AuditFilter
from evershell.core.caller import Permission
from evershell.core.change import Change, Locked
from evershell.core.errors import Failure, UnavailableError
from evershell.core.event import Event
from evershell.core.hold import Hold
from evershell.core.idempotency_key import FirstCall
from evershell.core.ports import (
    Clock,
    Leased,
    MatchedTasks,
    RecordedCancellation,
    Store,
)
from evershell.core.task import CancelIntent, Task
from evershell.core.task_filter import TaskSelection
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.faults.invariants.record import Record

Returned = TypeVar("Returned")


class Hiccup(Enum):
    """When a write fails whose answer is lost."""

    BEFORE = "before it is done"
    AFTER = "when it is done"


class SpyStore:
    """Implements core.ports.Store by another store."""

    def __init__(self, store: Store, record: Record, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._record = record
        # How each of the next writes fails.
        self.hiccups: deque[Hiccup] = deque()
        # When a write last failed.
        self.last_hiccup_at: datetime | None = None
        # The number of open calls.
        self._in_flight = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self.workspace: Workspace | None = None
        # The expiry of the last known lease, by epoch.
        self.leases: dict[int, datetime] = {}
        # Each task as it was last seen committed.
        self.tasks: dict[str, Task] = {}

    @property
    def is_at_rest(self) -> bool:
        """Whether no call is open."""
        return self._at_rest.is_set()

    async def rest(self) -> None:
        """Returns once no call is open."""
        await self._at_rest.wait()

    def intent(self, task_id: str) -> CancelIntent | None:
        """Returns the recorded intent, as far as it has been observed."""
        task = self.tasks.get(task_id)
        return task.cancel if task is not None else None

    def is_open(self, task_id: str) -> bool:
        """Whether the task is not known to have ended."""
        task = self.tasks.get(task_id)
        return task is None or not task.status.is_terminal

    async def record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        async def write() -> RecordedCancellation:
            found = await self._store.record_cancellation(
                permission, workspace_id, task_id, intent, trace_id, audit
            )
            self._note(found.workspace, found.task)
            return found

        return await self._write(write)

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        return await self._read(self._store.match_tasks(permission, wanted, force_at, limit))

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
        async def write() -> Mapping[str, bool]:
            found = await self._store.cancel_tasks(
                permission, task_ids, intent, trace_id, audit, wait=wait
            )
            for task_id in found:
                assert self.workspace is not None
                self._note(
                    await self._store.get_workspace(self.workspace.id),
                    await self._store.get_task(self.workspace.id, task_id),
                )
            return found

        return await self._write(write)

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        held_org_id: str | None = None,
    ) -> Change | None:
        async def write() -> Change | None:
            change = await self._store.transition(workspace_id, decide, held_org_id)
            if change is not None:
                self._note(change.workspace, change.task)
            return change

        return await self._write(write)

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        async def write() -> Leased | None:
            found = await self._store.renew_lease(workspace_id, epoch, lease_seconds)
            if found is not None:
                self._note(found.locked.workspace, found.locked.task)
            return found

        return await self._write(write)

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        await self._read(self._store.create_workspace(workspace, audit, first_call))
        self.workspace = workspace

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        return await self._write(lambda: self._store.hold_org(hold, audit))

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        await self._write(lambda: self._store.release_org(org_id, audit))

    async def get_hold(self, org_id: str) -> Hold | None:
        return await self._read(self._store.get_hold(org_id))

    async def count_holds(self) -> int:
        return await self._read(self._store.count_holds())

    async def find_first_call(self, org_id: str, key: str, after: datetime) -> FirstCall | None:
        return await self._read(self._store.find_first_call(org_id, key, after))

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        return await self._read(self._store.record_answer(first_call, answer))

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        return await self._read(self._store.get_workspace(workspace_id, org_id))

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Sequence[Workspace]:
        return await self._read(self._store.list_workspaces(permission, before_id, limit))

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        return await self._read(self._store.get_task(workspace_id, task_id))

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        return await self._read(self._store.get_workspace_with_task(workspace_id, task_id, org_id))

    async def list_tasks(
        self, workspace_id: str, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        return await self._read(self._store.list_tasks(workspace_id, before_id, limit))

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        return await self._read(self._store.list_events(workspace_id, after_seq, limit))

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        return await self._read(
            self._store.list_audit_entries(permission, wanted, before_id, limit)
        )

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        return await self._read(self._store.list_wanted_pods(after_id, limit))

    async def list_unsettled(self) -> Sequence[Workspace]:
        return await self._read(self._store.list_unsettled())

    async def list_expired_leases(self) -> Sequence[Workspace]:
        return await self._read(self._store.list_expired_leases())

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        return await self._read(self._store.lease_seconds_left(workspace_id))

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        return await self._read(self._store.list_cancellations())

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        return await self._read(self._store.list_limits_reached(now, limit))

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        return await self._read(self._store.count_workspaces())

    async def _write(self, write: Callable[[], Awaitable[Returned]]) -> Returned:
        hiccup = self.hiccups.popleft() if self.hiccups else None
        if hiccup is not None:
            self.last_hiccup_at = self._clock()
        if hiccup is Hiccup.BEFORE:
            raise UnavailableError("the database is out of reach")
        written = await self._read(write())
        if hiccup is Hiccup.AFTER:
            raise UnavailableError("the database's answer is lost")
        return written

    async def _read(self, call: Awaitable[Returned]) -> Returned:
        self._in_flight += 1
        self._at_rest.clear()
        try:
            return await call
        except Failure:
            raise
        except Exception as error:
            self._record.defects.append(error)
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._at_rest.set()

    def _note(self, workspace: Workspace | None, task: Task | None) -> None:
        """Keeps the newest rows: two replies may arrive in another order than their commits."""
        known = self.workspace
        if workspace is None or (
            known is not None
            and (workspace.epoch, workspace.last_seq) < (known.epoch, known.last_seq)
        ):
            return
        self.workspace = workspace
        if workspace.lease_expires_at is not None:
            self.leases[workspace.epoch] = workspace.lease_expires_at
        if task is not None:
            self.tasks[task.id] = task
