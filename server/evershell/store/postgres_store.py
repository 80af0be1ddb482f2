"""The Store of the core, on PostgreSQL."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from evershell.core.audit_entry import AuditEntry, AuditFilter
from evershell.core.caller import Permission
from evershell.core.change import Change, Locked
from evershell.core.event import Event
from evershell.core.idempotency_key import FirstCall
from evershell.core.ports import Clock, Leased, MatchedTasks, RecordedCancellation
from evershell.core.task import CancelIntent, Task
from evershell.core.task_filter import TaskSelection
from evershell.core.workspace import Workspace
from evershell.store import holds, idempotency_keys, queries
from evershell.store.announce import Announce, announce_to_nobody
from evershell.store.audit import INSERT, audit_entry_of, audit_query, audit_values
from evershell.store.batch_cancellations import BatchCancellations
from evershell.store.cancellations import Cancellations
from evershell.store.fleet_reads import FleetReads
from evershell.store.holds import Holds
from evershell.store.leases import Leases
from evershell.store.pool import Pool, connected
from evershell.store.rows import (
    TASK_COLUMNS,
    WORKSPACE_COLUMNS,
    event_of,
    task_of,
    workspace_of,
    workspace_values,
)
from evershell.store.shared_reads import SharedReads
from evershell.store.watched_workspaces import is_watched
from evershell.store.writes import insert, write_change

# Queries name their columns, so that a later migration which adds a column does not break prepared
# statements.
_WORKSPACE = ", ".join(WORKSPACE_COLUMNS)
_TASK = ", ".join(TASK_COLUMNS)

_LOCK_WORKSPACE = f"SELECT {_WORKSPACE}, watched_until FROM workspaces WHERE id = %s FOR UPDATE"
# A separate statement after the lock. Under READ COMMITTED, the statement that waits for the lock
# would read the tasks as they were before it waited.
_CURRENT_TASK = (
    f"SELECT {_TASK} FROM tasks WHERE id = (SELECT current_task_id FROM workspaces WHERE id = %s)"
)

# Sorts after every id, because no id contains a tilde.
_AFTER_ALL_IDS = "~"


class PostgresStore(FleetReads, Holds):
    """Implements core.ports.Store.

    Calls `announce` after each commit that others may wait for, and `committed` after each
    transition.
    """

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        announce: Announce = announce_to_nobody,
        committed: Callable[[Change], None] = lambda change: None,
        cancelled: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Calls `cancelled` with the number of tasks that a batch has cancelled."""
        super().__init__(pool, clock)
        self._leases = Leases(pool, clock)
        # Reads for watchers use at most half of the connections.
        self._event_reads = SharedReads(self._read_events, at_once=max(1, pool.max_size // 2))
        self._cancellations = Cancellations(pool, announce)
        self._batches = BatchCancellations(pool, announce, cancelled)
        self._announce = announce
        self._committed = committed

    async def record_cancellation(
        self,
        permission: Permission,
        workspace_id: str,
        task_id: str | None,
        intent: CancelIntent,
        trace_id: str = "",
        audit: AuditEntry | None = None,
    ) -> RecordedCancellation:
        return await self._cancellations.record(
            permission, workspace_id, task_id, intent, trace_id, audit
        )

    async def match_tasks(
        self, permission: Permission, wanted: TaskSelection, force_at: datetime | None, limit: int
    ) -> MatchedTasks:
        return await self._batches.match(permission, wanted, force_at, limit)

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
        return await self._batches.cancel(permission, task_ids, intent, trace_id, audit, wait=wait)

    async def drained(self) -> None:
        """Returns when no shared statement is in flight, even one whose callers were cancelled."""
        await asyncio.gather(self._cancellations.drained(), self._leases.drained())

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        held_org_id: str | None = None,
    ) -> Change | None:
        try:
            async with (
                connected(self._pool) as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                held = None if held_org_id is None else await holds.share(connection, held_org_id)
                workspaces = await connection.execute(
                    _LOCK_WORKSPACE, (workspace_id,), prepare=True, binary=True
                )
                tasks = await connection.execute(
                    _CURRENT_TASK, (workspace_id,), prepare=True, binary=True
                )
                workspace_row, task_row = await workspaces.fetchone(), await tasks.fetchone()
                if workspace_row is None:
                    return None
                locked = Locked(
                    workspace_of(workspace_row),
                    None if task_row is None else task_of(task_row),
                    None if held is None else holds.hold_of(await held.fetchone()),
                )
                change = decide(locked)
                change = await write_change(connection, locked, change)
                if change.lease_seconds is not None:
                    leased = await self._leases.extend(
                        connection, change.workspace, change.lease_seconds
                    )
                    change = replace(change, workspace=leased)
        except asyncio.CancelledError:
            # The change may have been committed before the cancellation.
            self._announce(workspace_id, watched=True, reconcile=True)
            raise
        # Nobody waits for a heartbeat.
        if change.events or change.workspace.status is not locked.workspace.status:
            self._announce(
                workspace_id,
                watched=is_watched(workspace_row[-1], self._clock()),
                reconcile=change.workspace.awaits_controller,
            )
        self._committed(change)
        return change

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        return await self._leases.renew(workspace_id, epoch, lease_seconds)

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
    ) -> None:
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            held = holds.hold_of(await (await holds.share(connection, workspace.org_id)).fetchone())
            if held is not None:
                raise held.refusal()
            await connection.execute(
                insert("workspaces", WORKSPACE_COLUMNS), workspace_values(workspace)
            )
            if audit is not None:
                await connection.execute(INSERT, audit_values(audit), prepare=True)
            if first_call is not None:
                await idempotency_keys.store_key(connection, first_call)
        self._announce(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    async def find_first_call(self, org_id: str, key: str, after: datetime) -> FirstCall | None:
        return await idempotency_keys.find_first_call(self._pool, org_id, key, after)

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        return await idempotency_keys.record_answer(self._pool, first_call, answer)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        row = await self._one(queries.GET_WORKSPACE, (workspace_id, org_id))
        return None if row is None else workspace_of(row)

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Sequence[Workspace]:
        caller, before = permission.caller, before_id or _AFTER_ALL_IDS
        if permission.own_only:
            rows = await self._all(
                queries.LIST_OWN_WORKSPACES, (caller.org_id, caller.user_id, before, limit)
            )
        else:
            rows = await self._all(queries.LIST_WORKSPACES, (caller.org_id, before, limit))
        return [workspace_of(row) for row in rows]

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        row = await self._one(queries.GET_TASK, (task_id, workspace_id))
        return None if row is None else task_of(row)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        row = await self._one(queries.GET_WORKSPACE_WITH_TASK, (task_id, workspace_id, org_id))
        if row is None:
            return None, None
        task_row = row[len(WORKSPACE_COLUMNS) :]
        return workspace_of(row), None if task_row[0] is None else task_of(task_row)

    async def list_tasks(
        self, workspace_id: str, before_id: str | None, limit: int
    ) -> Sequence[Task]:
        rows = await self._all(
            queries.LIST_TASKS, (workspace_id, before_id or _AFTER_ALL_IDS, limit)
        )
        return [task_of(row) for row in rows]

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        # Watchers that wait for the same events share a read.
        return await self._event_reads((workspace_id, after_seq, limit))

    async def _read_events(self, place: tuple[str, int, int]) -> Sequence[Event]:
        return [event_of(row) for row in await self._all(queries.LIST_EVENTS, place)]

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        query, parameters = audit_query(permission, wanted, before_id or _AFTER_ALL_IDS, limit)
        return [audit_entry_of(row) for row in await self._all(query, parameters)]
