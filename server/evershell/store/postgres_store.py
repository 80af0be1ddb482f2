"""The Store of the core, on PostgreSQL, and its queries.

Queries name their columns, so that a later migration which adds a column does not break prepared
statements.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from psycopg import AsyncCursor

from evershell.core import deadline, errors
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Locked
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter, Event
from evershell.core.ports import RENEW_BELOW_SHARE, Clock, Leased
from evershell.core.task import Task
from evershell.core.task_tree import Parent
from evershell.core.workspace import AgentCard, Workspace
from evershell.store.audit import audit_entry_of, audit_query, store_audit_entry
from evershell.store.cancel_tasks import CancelTasks
from evershell.store.cancellations import Cancellations
from evershell.store.connections import (
    ANSWER_TIMEOUT_SECONDS,
    Connection,
    Pool,
    connected,
    fetch_all,
    fetch_one,
)
from evershell.store.deletions import Deletions
from evershell.store.fleet_queries import FleetQueries
from evershell.store.group_commit import GroupCommit, SharedReads
from evershell.store.holds import Holds, hold_of, share_hold
from evershell.store.idempotency_keys import IdempotencyKeys, store_key
from evershell.store.notifications import Publish, publish_to_nobody
from evershell.store.old_tasks import OldTasks
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
    workspace_columns,
    workspace_of,
    workspace_values,
)
from evershell.store.task_lists import AFTER_ALL_IDS, TaskLists
from evershell.store.watched_workspaces import is_watched

WORKSPACE = workspace_columns()
TASK = task_columns()
EVENT = ", ".join(EVENT_COLUMNS)
BOTH = f"{workspace_columns('w.')}, {task_columns('t.')}"

# A change of a workspace.
LOCK_WORKSPACE = f"SELECT {WORKSPACE}, watched_until FROM workspaces WHERE id = %s FOR UPDATE"
# A separate statement after the lock. Under READ COMMITTED, the statement that waits for the lock
# would read the tasks as they were before it waited.
CURRENT_TASK = (
    f"SELECT {TASK} FROM tasks WHERE id = (SELECT current_task_id FROM workspaces WHERE id = %s)"
)
EXTEND_LEASE = (
    "UPDATE workspaces SET lease_expires_at = greatest("
    "lease_expires_at, %s + make_interval(secs => %s)) "
    "WHERE id = %s RETURNING lease_expires_at"
)
RENEW_LEASES = (
    f"SELECT /* renew_leases */ seconds_left, {workspace_columns('(w).')}, {task_columns('(t).')} "
    "FROM renew_leases(%s, %s, %s, %s, %s)"
)
# A heartbeat may wait for the previous statement, so that the next one carries many.
MAX_LEASES, LEASE_STATEMENTS = 64, 1

# Workspaces. The parameter is an organization, or NULL for any.
OF_ORG = "org_id = coalesce(%s, org_id)"
GET_WORKSPACE = f"SELECT {WORKSPACE} FROM workspaces WHERE id = %s AND {OF_ORG}"
LIST_WORKSPACES = (
    f"SELECT {WORKSPACE} FROM workspaces WHERE org_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
LIST_OWN_WORKSPACES = (
    f"SELECT {WORKSPACE} FROM workspaces "
    "WHERE org_id = %s AND created_by_user_id = %s AND id < %s ORDER BY id DESC LIMIT %s"
)
# Agent cards. A workspace without a row has an empty one.
ADD_CARD = insert("agent_cards", ("workspace_id", "description", "skills", "is_public"))
GET_CARD = (
    f"SELECT {workspace_columns('w.')}, c.description AS card_description, "
    "c.skills AS card_skills, c.is_public AS card_is_public "
    "FROM workspaces w LEFT JOIN agent_cards c ON c.workspace_id = w.id "
    f"WHERE w.id = %s AND {OF_ORG}"
)

# Tasks and events.
GET_TASK = f"SELECT {TASK} FROM tasks WHERE id = %s AND workspace_id = %s"
GET_WORKSPACE_WITH_TASK = (
    f"SELECT {BOTH} FROM workspaces w "
    "LEFT JOIN tasks t ON t.id = %s AND t.workspace_id = w.id "
    f"WHERE w.id = %s AND {OF_ORG}"
)
# The parent of a task that is submitted, with its workspace. The second statement sees what was
# committed before the first one has taken the lock.
LOCK_TREE = "SELECT lock_tree(%s, %s)"
GET_PARENT = (
    f"SELECT {BOTH}, (SELECT count(*) FROM tasks d "
    "WHERE d.ancestor_ids IS NOT NULL AND d.ancestor_ids[1] = coalesce(t.ancestor_ids[1], t.id) "
    "AND d.status IN ('submitted', 'delivered', 'running')) AS open_descendants "
    "FROM tasks t JOIN workspaces w ON w.id = t.workspace_id WHERE w.org_id = %s AND t.id = %s"
)
# A batch ends early if its payloads are large, because an agent may commit 4 MiB in each.
MAX_BATCH_BYTES = 4 * 2**20
# No row stands for a workspace that does not exist, one without a `seq` for the end of the log.
LIST_EVENTS = (
    f"SELECT {', '.join(f'e.{column}' for column in EVENT_COLUMNS)} "
    "FROM workspaces w LEFT JOIN LATERAL ("
    f"SELECT {EVENT}, sum(octet_length(payload::text)) OVER ("
    "ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes "
    "FROM events WHERE workspace_id = w.id AND seq > %s ORDER BY seq LIMIT %s"
    f") e ON coalesce(bytes, 0) < {MAX_BATCH_BYTES} WHERE w.id = %s ORDER BY e.seq"
)

# A workspace id, an epoch and the length of a lease in seconds.
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
        """Calls `cancelled` with the number of tasks that a batch has cancelled."""
        self._pool = pool
        self._clock = clock
        # Heartbeats that arrive at the same time share a statement.
        self._lease_group = GroupCommit(
            self._renew_leases, max_batch=MAX_LEASES, at_once=LEASE_STATEMENTS
        )
        # Reads for watchers use at most half of the connections.
        self._event_reads = SharedReads(self._read_events, at_once=max(1, pool.max_size // 2))
        self._cancellations = Cancellations(pool, publish)
        self.record_cancellation = self._cancellations.record
        batches = CancelTasks(pool, publish, cancelled)
        self.match_tasks, self.cancel_tasks = batches.match, batches.cancel
        self.cancel_tree = batches.cancel_tree
        holds = Holds(pool)
        self.hold_org, self.release_org = holds.hold_org, holds.release_org
        self.get_hold, self.count_holds = holds.get_hold, holds.count_holds
        keys = IdempotencyKeys(pool)
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
        self.count_deliveries = fleet.count_deliveries
        self._turns_of_trees = asyncio.Semaphore(max(1, pool.max_size // 4))
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
        try:
            async with (
                nullcontext() if parent_task_id is None else self._turn_of_tree(),
                connected(self._pool) as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                held = None if org_id is None else await share_hold(connection, org_id)
                parent = None
                if parent_task_id is not None:
                    parent = await _lock_parent(connection, org_id, parent_task_id)
                workspaces = await connection.execute(
                    LOCK_WORKSPACE, (workspace_id,), prepare=True, binary=True
                )
                tasks = await connection.execute(
                    CURRENT_TASK, (workspace_id,), prepare=True, binary=True
                )
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
            # The change may have been committed before the cancellation.
            self._publish(workspace_id, watched=True, reconcile=True)
            raise
        # Nobody waits for a heartbeat.
        if change.events or change.workspace.status is not locked.workspace.status:
            self._publish(
                workspace_id,
                watched=is_watched(workspace_row.watched_until, self._clock()),
                reconcile=change.workspace.awaits_controller,
            )
        self._committed(change)
        return change

    @asynccontextmanager
    async def _turn_of_tree(self) -> AsyncIterator[None]:
        """Waits until less than a quarter of the connections wait for locks of trees."""
        try:
            async with asyncio.timeout(deadline.bounded(ANSWER_TIMEOUT_SECONDS)):
                await self._turns_of_trees.acquire()
        except TimeoutError as error:
            raise UnavailableError("Too many submissions into trees wait.") from error
        try:
            yield
        finally:
            self._turns_of_trees.release()

    async def _extend_lease(
        self, connection: Connection, change: Change, lease_seconds: float
    ) -> Change:
        """Renews the lease of the workspace, which the connection has locked."""
        parameters = (self._clock(), lease_seconds, change.workspace.id)
        cursor = await connection.execute(EXTEND_LEASE, parameters, prepare=True, binary=True)
        row = await cursor.fetchone()
        assert row is not None
        leased = replace(change.workspace, lease_expires_at=row.lease_expires_at)
        return replace(change, workspace=leased)

    async def renew_lease(
        self, workspace_id: str, epoch: int, lease_seconds: float
    ) -> Leased | None:
        return await self._lease_group((workspace_id, epoch, lease_seconds))

    async def _renew_leases(self, requests: Sequence[_LeaseRequest]) -> Sequence[Leased | None]:
        columns = (list(column) for column in zip(*requests, strict=True))
        parameters = (*columns, RENEW_BELOW_SHARE, self._clock())
        return [_leased(row) for row in await fetch_all(self._pool, RENEW_LEASES, parameters)]

    async def create_workspace(
        self,
        workspace: Workspace,
        audit: AuditEntry | None = None,
        first_call: FirstCall | None = None,
        card: AgentCard | None = None,
    ) -> None:
        async with (
            connected(self._pool) as connection,
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
                skills = json_value(dict(card.skills))
                values = (workspace.id, card.description, skills, card.is_public)
                await connection.execute(ADD_CARD, values)
            await store_audit_entry(connection, audit)
            if first_call is not None:
                await store_key(connection, first_call)
        self._publish(workspace.id, watched=False, reconcile=workspace.awaits_controller)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        row = await fetch_one(self._pool, GET_WORKSPACE, (workspace_id, org_id))
        return None if row is None else workspace_of(row)

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        row = await fetch_one(self._pool, GET_CARD, (workspace_id, org_id))
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
    ) -> Sequence[Workspace]:
        caller, before = permission.caller, before_id or AFTER_ALL_IDS
        if permission.own_only:
            rows = await fetch_all(
                self._pool, LIST_OWN_WORKSPACES, (caller.org_id, caller.user_id, before, limit)
            )
        else:
            rows = await fetch_all(self._pool, LIST_WORKSPACES, (caller.org_id, before, limit))
        return [workspace_of(row) for row in rows]

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        row = await fetch_one(self._pool, GET_TASK, (task_id, workspace_id))
        return None if row is None else task_of(row)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        row = await fetch_one(self._pool, GET_WORKSPACE_WITH_TASK, (task_id, workspace_id, org_id))
        return (None, None) if row is None else (workspace_of(row), task_of(row))

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        # Watchers that wait for the same events share a read.
        events = await self._event_reads((after_seq, limit, workspace_id))
        if events is None:
            raise errors.workspace_not_found(workspace_id)
        return events

    async def _read_events(self, place: tuple[int, int, str]) -> Sequence[Event] | None:
        rows = await fetch_all(self._pool, LIST_EVENTS, place)
        return [event_of(row) for row in rows if row.seq is not None] if rows else None

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool) as connection:
            await store_audit_entry(connection, audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        query, parameters = audit_query(permission, wanted, before_id or AFTER_ALL_IDS, limit)
        return [audit_entry_of(row) for row in await fetch_all(self._pool, query, parameters)]


def _leased(row: Any) -> Leased | None:
    if row.id is None:
        return None
    seconds = float("-inf") if row.seconds_left is None else row.seconds_left
    return Leased(Locked(workspace_of(row), task_of(row)), seconds)


async def _lock_parent(
    connection: Connection, org_id: str | None, task_id: str
) -> AsyncCursor[Any]:
    """Locks the tree of the organization's task. The cursor has what `_parent_of` decodes."""
    await connection.execute(LOCK_TREE, (org_id, task_id), prepare=True)
    return await connection.execute(GET_PARENT, (org_id, task_id), prepare=True, binary=True)


def _parent_of(row: Any) -> Parent | None:
    task = None if row is None else task_of(row)
    return None if task is None else Parent(workspace_of(row), task, row.open_descendants)


async def _write_change(connection: Connection, locked: Locked, change: Change) -> Change:
    """Writes the rows that have changed. Returns the change with its `last_seq`."""
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
