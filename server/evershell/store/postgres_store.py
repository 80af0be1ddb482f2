"""The Store of the core, on PostgreSQL."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from psycopg import AsyncCursor

from evershell.core import errors
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Locked
from evershell.core.event import AuditEntry, AuditFilter, EventBatch
from evershell.core.ports import RENEW_BELOW_SHARE, Clock, Leased
from evershell.core.task import Task
from evershell.core.task_tree import Parent
from evershell.core.validation import Listed
from evershell.core.workspace import AgentCard, Workspace
from evershell.store import scans
from evershell.store.audit import list_audit_entries, store_audit_entry
from evershell.store.cancel_tasks import CancelTasks
from evershell.store.cancellations import Cancellations
from evershell.store.deletions import Deletions
from evershell.store.fleet_queries import FleetQueries
from evershell.store.group_commit import GroupCommit, SharedReads
from evershell.store.holds import Holds, hold_of, share_hold
from evershell.store.idempotency_keys import IdempotencyKeys, store_key
from evershell.store.old_tasks import OldTasks
from evershell.store.pool import Connection, Pool, connected, fetch_all, fetch_one
from evershell.store.publish import Publish, publish_to_nobody
from evershell.store.rows import (
    EVENT_COLUMNS,
    TASK_COLUMNS,
    WORKSPACE_COLUMNS,
    Values,
    event_of,
    event_values,
    insert,
    json_value,
    task_columns,
    task_of,
    task_values,
    update,
    workspace_of,
    workspace_values,
)
from evershell.store.scans import AFTER_ALL_IDS, listed
from evershell.store.statements import statements
from evershell.store.task_lists import TaskLists
from evershell.store.watched_workspaces import is_watched

# At most one statement at a time renews leases. Heartbeats wait for it, so that the next statement
# renews many.
MAX_LEASES, LEASE_STATEMENTS = 64, 1
# A watcher that stops reading keeps its current batch in memory. A single event may have 4 MiB.
MAX_BATCH_BYTES = 256 * 2**10
SQL = statements(
    "postgres_store",
    **vars(scans.SQL),
    whole_task=task_columns(started_calls=True),
    max_batch_bytes=MAX_BATCH_BYTES,
)

# A workspace id, an epoch, and the length of a lease in seconds.
_LeaseRequest = tuple[str, int, float]


class PostgresStore:
    """Implements core.ports.Store.

    Calls `publish` after each commit that others may wait for, and `committed` after each
    transition.
    """

    def __init__(
        self,
        pool: Pool,
        clock: Clock,
        publish: Publish = publish_to_nobody,
        committed: Callable[[Change], None] = lambda change: None,
        cancelled: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`cancelled` is called with the number of tasks that each batch has cancelled."""
        self._pool = pool
        self._clock = clock
        # Heartbeats that arrive at the same time share a statement.
        self._lease_group = GroupCommit(
            self._renew_leases, max_batch=MAX_LEASES, at_once=LEASE_STATEMENTS
        )
        self._event_reads = SharedReads(self._read_events, at_once=max(1, pool.others.size // 4))
        self._cancellations = Cancellations(pool, publish)
        self.record_cancellation = self._cancellations.record
        batches = CancelTasks(pool, publish, cancelled)
        self.match_tasks, self.cancel_tasks = batches.match, batches.cancel
        self.cancel_tree = batches.cancel_tree
        holds = Holds(pool)
        self.hold_org, self.release_org = holds.hold_org, holds.release_org
        self.get_hold, self.count_holds = holds.get_hold, holds.count_holds
        keys = IdempotencyKeys(pool.others)
        self.find_first_call, self.record_answer = keys.find_first_call, keys.record_answer
        lists = TaskLists(pool)
        self.list_tasks, self.count_tasks = lists.list_tasks, lists.count_tasks
        self.list_org_tasks = lists.list_org_tasks
        self.list_limited_trees = lists.list_limited_trees
        old_tasks = OldTasks(pool)
        self.list_old_logs = old_tasks.list_old_logs
        self.remove_old_tasks, self.oldest_end = old_tasks.remove_old_tasks, old_tasks.oldest_end
        fleet = FleetQueries(pool, clock)
        self.list_wanted_pods, self.list_unsettled = fleet.list_wanted_pods, fleet.list_unsettled
        self.list_expired_leases = fleet.list_expired_leases
        self.lease_seconds_left = fleet.lease_seconds_left
        self.worker_silences = fleet.worker_silences
        self.list_cancellations = fleet.list_cancellations
        self.list_limits_reached = fleet.list_limits_reached
        self.count_workspaces = fleet.count_workspaces
        deletions = Deletions(pool, clock, publish)
        self.remove_workspace = deletions.remove
        self.find_deleted_workspace = deletions.find
        self._publish = publish
        self._committed = committed

    async def drained(self) -> None:
        """Returns when no shared statement is in flight, even one whose callers were cancelled."""
        await asyncio.gather(self._cancellations.drained(), self._lease_group.drained())

    async def transition(
        self,
        workspace_id: str,
        decide: Callable[[Locked], Change],
        org_id: str | None = None,
        parent_task_id: str | None = None,
    ) -> Change | None:
        pool = self._pool.others if parent_task_id is None else self._pool.trees
        try:
            async with (
                connected(pool) as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                held = None if org_id is None else await share_hold(connection, org_id)
                parent = None
                if parent_task_id is not None:
                    parent = await _lock_parent(connection, org_id, parent_task_id)
                named = {"workspace_id": workspace_id}
                workspaces = await connection.execute(
                    SQL.lock_workspace, named, prepare=True, binary=True
                )
                tasks = await connection.execute(SQL.current_task, named, prepare=True, binary=True)
                workspace_row, task_row = await workspaces.fetchone(), await tasks.fetchone()
                if workspace_row is None:
                    return None
                locked = Locked(
                    workspace_of(workspace_row),
                    None if task_row is None else task_of(task_row),
                    None if held is None else hold_of(await held.fetchone()),
                    None if parent is None else _parent_of(await parent.fetchone()),
                )
                change = decide(locked)
                change = await _write_change(connection, locked, change)
                if change.lease_seconds is not None:
                    change = await self._extend_lease(connection, change, change.lease_seconds)
        except asyncio.CancelledError:
            # The change may have been committed before this call was cancelled.
            self._publish(workspace_id, watched=True, reconcile=True)
            raise
        # A heartbeat is not published, because nobody waits for it.
        if change.events or change.workspace.status is not locked.workspace.status:
            self._publish(
                workspace_id,
                watched=is_watched(workspace_row.watched_until, self._clock()),
                reconcile=change.workspace.awaits_controller,
            )
        self._committed(change)
        return change

    async def _extend_lease(
        self, connection: Connection, change: Change, lease_seconds: float
    ) -> Change:
        """Renews the lease of the workspace, which the connection has locked."""
        parameters = {
            "workspace_id": change.workspace.id,
            "lease_seconds": lease_seconds,
            "now": self._clock(),
        }
        cursor = await connection.execute(SQL.extend_lease, parameters, prepare=True, binary=True)
        row = await cursor.fetchone()
        assert row is not None
        leased = replace(change.workspace, lease_expires_at=row.lease_expires_at)
        return replace(change, workspace=leased)

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        return await self._lease_group((workspace_id, epoch, lease_seconds))

    async def _renew_leases(self, requests: Sequence[_LeaseRequest]) -> Sequence[Leased | None]:
        ids, epochs, lease_seconds = (list(column) for column in zip(*requests, strict=True))
        rows = await fetch_all(
            self._pool,
            SQL.renew_leases,
            ids=ids,
            epochs=epochs,
            lease_seconds=lease_seconds,
            below_share=RENEW_BELOW_SHARE,
            now=self._clock(),
        )
        return [_leased(row) for row in rows]

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
        card: AgentCard | None = None,
    ) -> None:
        async with (
            connected(self._pool.others) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            held = hold_of(await (await share_hold(connection, workspace.org_id)).fetchone())
            if held is not None:
                raise held.refusal()
            await connection.execute(
                insert("workspaces", WORKSPACE_COLUMNS), workspace_values(workspace)
            )
            if card is not None:
                values = {
                    "workspace_id": workspace.id,
                    "description": card.description,
                    "skills": json_value(dict(card.skills)),
                    "is_public": card.is_public,
                }
                await connection.execute(SQL.add_card, values)
            await store_audit_entry(connection, audit)
            if first_call is not None:
                await store_key(connection, first_call)
        self._publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        named = {"workspace_id": workspace_id, "org_id": org_id}
        row = await fetch_one(self._pool.others, SQL.get_workspace, **named)
        return None if row is None else workspace_of(row)

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        named = {"workspace_id": workspace_id, "org_id": org_id}
        row = await fetch_one(self._pool.others, SQL.get_card, **named)
        if row is None:
            return None, AgentCard()
        if row.card_skills is None:
            return workspace_of(row), AgentCard()
        card = AgentCard(
            description=row.card_description, skills=row.card_skills, is_public=row.card_is_public
        )
        return workspace_of(row), card

    async def list_workspaces(
        self, permission: Permission, before_id: str | None, limit: int
    ) -> Listed[Workspace]:
        caller = permission.caller
        return await listed(
            self._pool.lists,
            SQL.list_own_workspaces if permission.own_only else SQL.list_workspaces,
            workspace_of,
            org_id=caller.org_id,
            user_id=caller.user_id,
            before_id=before_id or AFTER_ALL_IDS,
            limit=limit,
        )

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        row = await fetch_one(self._pool, SQL.get_task, workspace_id=workspace_id, task_id=task_id)
        return None if row is None else task_of(row)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        named = {"workspace_id": workspace_id, "task_id": task_id, "org_id": org_id}
        row = await fetch_one(self._pool, SQL.get_workspace_with_task, **named)
        return (None, None) if row is None else (workspace_of(row), task_of(row))

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> EventBatch:
        # Watchers that wait for the same events share a read.
        events = await self._event_reads((after_seq, limit, workspace_id))
        if events is None:
            raise errors.workspace_not_found(workspace_id)
        return events

    async def _read_events(self, place: tuple[int, int, str]) -> EventBatch | None:
        after_seq, limit, workspace_id = place
        rows = await fetch_all(
            self._pool.others,
            SQL.list_events,
            workspace_id=workspace_id,
            after_seq=after_seq,
            limit=limit,
        )
        return EventBatch(event_of(row) for row in rows if row.seq is not None) if rows else None

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool.others) as connection:
            await store_audit_entry(connection, audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        return await list_audit_entries(self._pool.lists, permission, wanted, before_id, limit)


def _leased(row: Any) -> Leased | None:
    if row.id is None:
        return None
    seconds = float("-inf") if row.seconds_left is None else row.seconds_left
    return Leased(Locked(workspace_of(row), task_of(row)), seconds)


async def _lock_parent(
    connection: Connection, org_id: str | None, task_id: str
) -> AsyncCursor[Any]:
    """Locks the tree of the organization's task. `_parent_of` decodes the row of the cursor."""
    named = {"org_id": org_id, "task_id": task_id}
    await connection.execute(SQL.lock_tree, named, prepare=True)
    return await connection.execute(SQL.get_parent, named, prepare=True, binary=True)


def _parent_of(row: Any) -> Parent | None:
    task = None if row is None else task_of(row)
    return None if task is None else Parent(workspace_of(row), task, row.open_descendants)


async def _write_change(connection: Connection, locked: Locked, change: Change) -> Change:
    """Writes the changed rows. Returns the change with the new `last_seq`."""
    workspace_id, seq = locked.workspace.id, locked.workspace.last_seq
    change = replace(change, workspace=replace(change.workspace, last_seq=seq + len(change.events)))
    await _write_row(
        connection,
        "workspaces",
        WORKSPACE_COLUMNS,
        workspace_values(locked.workspace),
        workspace_values(change.workspace),
    )
    if change.task is not None:
        before = (
            locked.task if locked.task is not None and locked.task.id == change.task.id else None
        )
        old = None if before is None else task_values(before)
        await _write_row(connection, "tasks", TASK_COLUMNS, old, task_values(change.task))
    for number, event in enumerate(change.events, seq + 1):
        await connection.execute(
            insert("events", EVENT_COLUMNS),
            event_values(workspace_id, number, event),
            prepare=True,
        )
    await store_audit_entry(connection, change.audit)
    if change.first_call is not None:
        await store_key(connection, change.first_call)
    return change


async def _write_row(
    connection: Connection, table: str, columns: tuple[str, ...], old: Values | None, new: Values
) -> None:
    """Inserts the row, or updates the columns that differ, if any."""
    if old is None:
        query, parameters = insert(table, columns), list(new)
    else:
        differing = [
            (column, after)
            for column, before, after in zip(columns, old, new, strict=True)
            if before != after
        ]
        if not differing:
            return
        changed = tuple(column for column, _ in differing)
        query, parameters = update(table, changed), [value for _, value in differing] + [new[0]]
    wrapped = [json_value(value) if isinstance(value, dict) else value for value in parameters]
    await connection.execute(query, wrapped)
