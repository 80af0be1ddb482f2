"""The Store of the core, on PostgreSQL, and its queries.

Queries name their columns, so that a later migration which adds a column does not break prepared
statements.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncCursor

from evershell.core import deadline, errors
from evershell.core.caller import Permission
from evershell.core.change import Change, FirstCall, Hold, KeyTakenError, Locked
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter, Event
from evershell.core.ports import (
    RENEW_BELOW_SHARE,
    Clock,
    Leased,
)
from evershell.core.task import Task
from evershell.core.task_tree import Parent
from evershell.core.webhook import DeliveryCounts
from evershell.core.workspace import AgentCard, Workspace, WorkspaceStatus
from evershell.store.audit import audit_entry_of, audit_query, store_audit_entry
from evershell.store.cancel_tasks import CancelTasks
from evershell.store.cancellations import Cancellations
from evershell.store.connections import ANSWER_TIMEOUT_SECONDS, Connection, Pool, connected
from evershell.store.deletions import Deletions
from evershell.store.group_commit import GroupCommit, SharedReads
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

# What the fleet controller reads: what is due, by index, and everything, a page at a time.
# The condition of the index workspaces_with_pod.
WITH_POD = "status IN ('provisioning', 'idle', 'busy', 'stopping')"
LIST_WANTED_PODS = (
    f"SELECT {WORKSPACE} FROM workspaces WHERE {WITH_POD} AND id > %s ORDER BY id LIMIT %s"
)
# The conditions are those of the indexes workspaces_unsettled, workspaces_breached and
# workspaces_suspending and workspaces_deleting.
LIST_UNSETTLED = (
    f"SELECT {WORKSPACE} FROM workspaces "
    "WHERE status IN ('provisioning', 'stopping') OR task_unnamed_since IS NOT NULL "
    "OR agent_breach IS NOT NULL OR (status = 'suspended' AND run_id IS NOT NULL) "
    "OR status = 'deleting' ORDER BY id"
)
# The query reads the tasks that run, by the index tasks_one_open. An index of the cancelled ones
# would make each cancellation write more than it saves here (docs/decisions/0015).
LIST_CANCELLATIONS = (
    f"SELECT {BOTH} FROM tasks t JOIN workspaces w ON w.id = t.workspace_id "
    "WHERE t.status IN ('submitted', 'delivered', 'running') "
    "AND t.cancel_requested_at IS NOT NULL ORDER BY w.id"
)
# By the index tasks_limited. A task that is cancelled already is left out, unless the limit sets an
# earlier force deadline, to the millisecond.
REACHED_AT = "(started_at AT TIME ZONE 'UTC') + make_interval(secs => max_duration_seconds)"
LIST_LIMITS_REACHED = (
    "SELECT workspace_id FROM tasks WHERE max_duration_seconds IS NOT NULL "
    "AND status IN ('submitted', 'delivered', 'running') "
    f"AND {REACHED_AT} <= (%s::timestamptz AT TIME ZONE 'UTC') "
    "AND (cancel_requested_at IS NULL OR coalesce(cancel_force_at, 'infinity') > started_at + "
    "make_interval(secs => max_duration_seconds + limit_force_after_seconds + 0.001)) "
    f"ORDER BY {REACHED_AT} LIMIT %s"
)
LIST_EXPIRED_LEASES = (
    f"SELECT {WORKSPACE} FROM workspaces WHERE {WITH_POD} AND lease_expires_at < %s ORDER BY id"
)
SECONDS_LEFT = (
    "SELECT extract(epoch FROM {} - %s::timestamptz)::float8 AS seconds FROM workspaces WHERE "
)
FIRST_LEASE_SECONDS_LEFT = SECONDS_LEFT.format("min(lease_expires_at)") + WITH_POD
LEASE_SECONDS_LEFT = SECONDS_LEFT.format("lease_expires_at") + "id = %s"
COUNT_WORKSPACES = "SELECT status, count(*) AS number FROM workspaces GROUP BY status"

# Holds. The lock of an organization is an advisory lock of PostgreSQL, because an organization may
# have no row. A transaction takes it first, before any row, and keeps it until it is committed. So
# it cannot take part in a deadlock. Organizations whose ids have the same hash share a lock, which
# is harmless. The class is an arbitrary number: locks with two numbers have a key space of their
# own.
HOLD_LOCK_CLASS = 0x6576_6C68
LOCK_HOLD = f"SELECT pg_advisory_xact_lock({HOLD_LOCK_CLASS}, hashtext(%s))"
SHARE_HOLD_LOCK = f"SELECT pg_advisory_xact_lock_shared({HOLD_LOCK_CLASS}, hashtext(%s))"
HOLD_COLUMNS = tuple(field.name for field in fields(Hold))
HOLD = ", ".join(HOLD_COLUMNS)
# A statement of its own after the lock, so that it reads what was committed before the lock.
GET_HOLD = f"SELECT {HOLD} FROM org_holds WHERE org_id = %s"
ADD_HOLD = insert("org_holds", HOLD_COLUMNS) + " ON CONFLICT (org_id) DO NOTHING"
REMOVE_HOLD = "DELETE FROM org_holds WHERE org_id = %s"
COUNT_HOLDS = "SELECT count(*) AS number FROM org_holds"
# By the indexes of what is due and what has failed, and not much of either.
COUNT_DELIVERIES = (
    "SELECT p.pending, p.oldest, f.failed FROM ("
    "SELECT count(*) AS pending, min(pending_since) AS oldest FROM ("
    "SELECT pending_since FROM webhook_deliveries WHERE due_at IS NOT NULL LIMIT 10001) few) p, "
    "(SELECT count(*) AS failed FROM ("
    "SELECT FROM webhook_deliveries WHERE failed LIMIT 10001) few) f"
)

# Idempotency keys.
CALL_COLUMNS = tuple(field.name for field in fields(FirstCall))
CALL = ", ".join(CALL_COLUMNS)
# The insertion waits for a transaction that is about to store the same key. An expired key is
# replaced.
STORE_KEY = (
    insert("idempotency_keys AS stored", CALL_COLUMNS)
    + " ON CONFLICT (org_id, key) DO UPDATE SET "
    + ", ".join(f"{column} = EXCLUDED.{column}" for column in CALL_COLUMNS[2:])
    + " WHERE stored.called_at <= %s RETURNING true"
)
# Each call with a key removes up to two expired ones, so their number shrinks. A call never waits
# for another one that removes the same keys.
PRUNE_KEYS = (
    "DELETE FROM idempotency_keys WHERE (org_id, key) IN ("
    "SELECT org_id, key FROM idempotency_keys WHERE called_at <= %s ORDER BY called_at LIMIT 2 "
    "FOR UPDATE SKIP LOCKED)"
)
FIND_CALL = f"SELECT {CALL} FROM idempotency_keys WHERE org_id = %s AND key = %s AND called_at > %s"
STORE_ANSWER = (
    "UPDATE idempotency_keys SET answer = coalesce(nullif(answer, ''), %s) "
    "WHERE org_id = %s AND key = %s AND task_id = %s RETURNING answer"
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
        lists = TaskLists(pool)
        self.list_tasks, self.count_tasks = lists.list_tasks, lists.count_tasks
        self.list_tree, self.list_limited_trees = lists.list_tree, lists.list_limited_trees
        old_tasks = OldTasks(pool)
        self.list_old_logs = old_tasks.list_old_logs
        self.remove_old_tasks, self.oldest_end = old_tasks.remove_old_tasks, old_tasks.oldest_end
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
                held = None if org_id is None else await _share_hold(connection, org_id)
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
                    None if held is None else _hold_of(await held.fetchone()),
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
        return [_leased(row) for row in await self._all(RENEW_LEASES, parameters)]

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
            held = _hold_of(await (await _share_hold(connection, workspace.org_id)).fetchone())
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

    async def hold_org(self, hold: Hold, audit: AuditEntry | None = None) -> Hold:
        values = (hold.org_id, hold.held_by, hold.held_since, hold.reason)
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(LOCK_HOLD, (hold.org_id,))
            await connection.execute(ADD_HOLD, values)
            cursor = await connection.execute(GET_HOLD, (hold.org_id,))
            await store_audit_entry(connection, audit)
            stored = _hold_of(await cursor.fetchone())
        assert stored is not None, "the row was inserted, or there before"
        return stored

    async def release_org(self, org_id: str, audit: AuditEntry | None = None) -> None:
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(LOCK_HOLD, (org_id,))
            await connection.execute(REMOVE_HOLD, (org_id,))
            await store_audit_entry(connection, audit)

    async def get_hold(self, org_id: str) -> Hold | None:
        return _hold_of(await self._one(GET_HOLD, (org_id,)))

    async def count_holds(self) -> int:
        row = await self._one(COUNT_HOLDS, ())
        return int(row.number)

    async def count_deliveries(self) -> DeliveryCounts:
        row = await self._one(COUNT_DELIVERIES, ())
        return DeliveryCounts(row.pending, row.failed, row.oldest)

    async def find_first_call(self, org_id: str, key: str, after: datetime) -> FirstCall | None:
        row = await self._one(FIND_CALL, (org_id, key, after))
        return None if row is None else FirstCall(**row._asdict())

    async def record_answer(self, first_call: FirstCall, answer: str) -> str:
        parameters = (answer, first_call.org_id, first_call.key, first_call.task_id)
        row = await self._one(STORE_ANSWER, parameters)
        return answer if row is None else str(row.answer)

    async def get_workspace(self, workspace_id: str, org_id: str | None = None) -> Workspace | None:
        row = await self._one(GET_WORKSPACE, (workspace_id, org_id))
        return None if row is None else workspace_of(row)

    async def get_agent_card(
        self, workspace_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, AgentCard]:
        row = await self._one(GET_CARD, (workspace_id, org_id))
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
            rows = await self._all(
                LIST_OWN_WORKSPACES, (caller.org_id, caller.user_id, before, limit)
            )
        else:
            rows = await self._all(LIST_WORKSPACES, (caller.org_id, before, limit))
        return [workspace_of(row) for row in rows]

    async def get_task(self, workspace_id: str, task_id: str) -> Task | None:
        row = await self._one(GET_TASK, (task_id, workspace_id))
        return None if row is None else task_of(row)

    async def get_workspace_with_task(
        self, workspace_id: str, task_id: str, org_id: str | None = None
    ) -> tuple[Workspace | None, Task | None]:
        row = await self._one(GET_WORKSPACE_WITH_TASK, (task_id, workspace_id, org_id))
        return (None, None) if row is None else (workspace_of(row), task_of(row))

    async def list_events(self, workspace_id: str, after_seq: int, limit: int) -> Sequence[Event]:
        # Watchers that wait for the same events share a read.
        events = await self._event_reads((after_seq, limit, workspace_id))
        if events is None:
            raise errors.workspace_not_found(workspace_id)
        return events

    async def _read_events(self, place: tuple[int, int, str]) -> Sequence[Event] | None:
        rows = await self._all(LIST_EVENTS, place)
        return [event_of(row) for row in rows if row.seq is not None] if rows else None

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool) as connection:
            await store_audit_entry(connection, audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        query, parameters = audit_query(permission, wanted, before_id or AFTER_ALL_IDS, limit)
        return [audit_entry_of(row) for row in await self._all(query, parameters)]

    async def list_wanted_pods(self, after_id: str, limit: int) -> Sequence[Workspace]:
        return [workspace_of(row) for row in await self._all(LIST_WANTED_PODS, (after_id, limit))]

    async def list_unsettled(self) -> Sequence[Workspace]:
        return [workspace_of(row) for row in await self._all(LIST_UNSETTLED, ())]

    async def list_expired_leases(self) -> Sequence[Workspace]:
        rows = await self._all(LIST_EXPIRED_LEASES, (self._clock(),))
        return [workspace_of(row) for row in rows]

    async def lease_seconds_left(self, workspace_id: str | None = None) -> float | None:
        if workspace_id is None:
            row = await self._one(FIRST_LEASE_SECONDS_LEFT, (self._clock(),))
        else:
            row = await self._one(LEASE_SECONDS_LEFT, (self._clock(), workspace_id))
        return None if row is None else row.seconds

    async def list_cancellations(self) -> Sequence[tuple[Workspace, Task]]:
        rows = await self._all(LIST_CANCELLATIONS, ())
        return [(workspace_of(row), task) for row in rows if (task := task_of(row))]

    async def list_limits_reached(self, now: datetime, limit: int) -> Sequence[str]:
        rows = await self._all(LIST_LIMITS_REACHED, (now, limit))
        return [row.workspace_id for row in rows]

    async def count_workspaces(self) -> Mapping[WorkspaceStatus, int]:
        rows = await self._all(COUNT_WORKSPACES, ())
        return {WorkspaceStatus(row.status): row.number for row in rows}

    async def _one(self, query: str, parameters: Values) -> Any:
        """The first row; None if there is none."""
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchone()

    async def _all(self, query: str, parameters: Values) -> Sequence[Any]:
        async with connected(self._pool) as connection:
            cursor = await connection.execute(query, parameters, prepare=True, binary=True)
            return await cursor.fetchall()


def _leased(row: Any) -> Leased | None:
    if row.id is None:
        return None
    seconds = float("-inf") if row.seconds_left is None else row.seconds_left
    return Leased(Locked(workspace_of(row), task_of(row)), seconds)


async def _share_hold(connection: Connection, org_id: str) -> AsyncCursor[Any]:
    """Begins a transaction that a hold of the organization would refuse.

    The cursor has the hold, if there is one. `_hold_of` decodes it.
    """
    await connection.execute(SHARE_HOLD_LOCK, (org_id,), prepare=True)
    return await connection.execute(GET_HOLD, (org_id,), prepare=True, binary=True)


async def _lock_parent(
    connection: Connection, org_id: str | None, task_id: str
) -> AsyncCursor[Any]:
    """Locks the tree of the organization's task. The cursor has what `_parent_of` decodes."""
    await connection.execute(LOCK_TREE, (org_id, task_id), prepare=True)
    return await connection.execute(GET_PARENT, (org_id, task_id), prepare=True, binary=True)


def _parent_of(row: Any) -> Parent | None:
    task = None if row is None else task_of(row)
    return None if task is None else Parent(workspace_of(row), task, row.open_descendants)


def _hold_of(row: Any) -> Hold | None:
    return None if row is None else Hold(**row._asdict())


async def store_key(connection: Connection, call: FirstCall) -> None:
    """Stores the key in the transaction of the connection. Raises KeyTakenError."""
    values = [getattr(call, column) for column in CALL_COLUMNS]
    expired = call.expires_before
    stored = await connection.execute(STORE_KEY, (*values, expired), prepare=True)
    if await stored.fetchone() is None:
        raise KeyTakenError
    await connection.execute(PRUNE_KEYS, (expired,), prepare=True)


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
