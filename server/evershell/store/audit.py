"""Stores entries of the audit log, in the background or with a change, and lists them.

The table has a partition for each month.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import sql
from psycopg.types.json import Json

from evershell.core.caller import Permission
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.ids import first_audit_id
from evershell.core.validation import Listed
from evershell.store import scans
from evershell.store.batch import Batch
from evershell.store.part import Part
from evershell.store.pool import Connection, Connections, connected
from evershell.store.scans import AFTER_ALL_IDS, listed
from evershell.store.statements import statements

_COLUMNS = tuple(field.name for field in fields(AuditEntry))
# Takes less time than dataclasses.astuple, which copies every value.
_values = attrgetter(*_COLUMNS)
SQL = statements(
    "audit",
    **vars(scans.SQL),
    entry=", ".join(_COLUMNS),
    entry_values=", ".join(f"%({column})s" for column in _COLUMNS),
)


async def store_audit_entry(connection: Connection, audit: AuditEntry | None) -> None:
    """Stores the entry, if there is one, in the transaction of the connection."""
    if audit is not None:
        await connection.execute(SQL.store_entry, _fields_of(audit), prepare=True)


def audit_json(entry: AuditEntry) -> dict[str, Any]:
    """The entry as a JSON object, with the names of the columns as keys."""
    return _fields_of(entry) | {"time": entry.time.isoformat()}


def _fields_of(entry: AuditEntry) -> dict[str, Any]:
    return dict(zip(_COLUMNS, _values(entry), strict=True))


async def store_audit_entries(pool: Connections, entries: Sequence[AuditEntry]) -> None:
    """Stores the entries that are not stored yet. Raises UnavailableError."""
    async with connected(pool) as connection:
        parameters = {"entries": Json([audit_json(entry) for entry in entries])}
        await connection.execute(SQL.store_entries, parameters)


class AuditLog(Part):
    """Implements core.ports.AuditLog."""

    async def add_audit_entry(self, audit: AuditEntry | None) -> None:
        async with connected(self._pool.others) as connection:
            await store_audit_entry(connection, audit)

    async def list_audit_entries(
        self, permission: Permission, wanted: AuditFilter, before_id: str | None, limit: int
    ) -> Listed[AuditEntry]:
        start, end = wanted.start_time, wanted.end_time
        return await listed(
            self._pool.lists,
            SQL.list_of_workspace if wanted.workspace_id else SQL.list_of_org,
            _entry_of,
            # With a generic plan, PostgreSQL would expect few rows. It might then read and sort all
            # entries of the workspace or organization.
            prepare=False,
            org_id=permission.caller.org_id,
            own_only=permission.own_only,
            user_id=permission.caller.user_id or "",
            workspace_id=wanted.workspace_id,
            task_id=wanted.task_id,
            actor_id=wanted.actor_id,
            rpc=wanted.rpc,
            outcome=wanted.outcome,
            start_id=first_audit_id(start) if start else "",
            end_id=first_audit_id(end) if end else AFTER_ALL_IDS,
            before_id=before_id or AFTER_ALL_IDS,
            limit=limit,
        )


def _entry_of(row: Any) -> AuditEntry:
    return AuditEntry(**{column: getattr(row, column) for column in _COLUMNS})


# How long entries are gathered. It is short, so that an entry is stored within a second.
_GATHER_SECONDS = 0.5
# How long an entry waits if its call was given up, and it is uncertain whether the call has stored
# the entry. The database may still execute the call's statement, but ends it within this time.
UNCERTAIN_SECONDS = 10.0
_MAX_BATCH = 500
_MAX_ENTRIES = 10_000

Write = Callable[[Sequence[AuditEntry]], Awaitable[None]]

_log = structlog.get_logger()


class AuditQueue:
    """Implements api.interceptors.auditing.Queue."""

    def __init__(self, write: Write, report_lost: Callable[[int], None] = lambda count: None):
        """`report_lost` is called with the number of entries that cannot be stored."""
        self._write = write
        self._report_lost = report_lost
        self._lost = 0
        self._entries: Batch[AuditEntry, None] = Batch(
            self._store,
            at_most=_MAX_BATCH,
            gather_seconds=_GATHER_SECONDS,
            capacity=_MAX_ENTRIES,
            dropped=lambda entry: self.lose(),
        )
        self._uncertain: dict[str, AuditEntry] = {}

    def put(self, entry: AuditEntry, *, uncertain: bool) -> None:
        """Stores the entry soon, or an `uncertain` one later, unless its call has stored it."""
        if not uncertain:
            self._entries.put(entry, entry.id)
        elif len(self._uncertain) < _MAX_ENTRIES:
            self._uncertain[entry.id] = entry
            loop = asyncio.get_running_loop()
            loop.call_later(UNCERTAIN_SECONDS, self._put_uncertain, entry.id)
        else:
            self.lose()

    def lose(self) -> None:
        """Counts an entry as lost."""
        if not self._lost:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._count_lost)
        self._lost += 1

    async def drained(self) -> None:
        """Stores all entries that are still in the queue, even the uncertain ones."""
        for entry_id in list(self._uncertain):
            self._put_uncertain(entry_id)
        await self._entries.drained()
        self._count_lost()

    def _put_uncertain(self, entry_id: str) -> None:
        entry = self._uncertain.pop(entry_id, None)
        if entry is not None:
            self._entries.put(entry, entry_id)

    async def _store(self, entries: Sequence[AuditEntry]) -> None:
        try:
            await self._write(entries)
        except UnavailableError as error:
            _log.warning("audit_not_stored", error=str(error), entries=len(entries))
            raise

    def _count_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            _log.error("audit_entries_lost", entries=lost)
            self._report_lost(lost)


# Partitions exist for the current month, and for this number of months after it.
_MONTHS_AHEAD = 12
_DEFAULT = "audit_entries_default"


def add_partitions(connection: psycopg.Connection[Any], now: datetime) -> None:
    """Adds the missing partitions, and moves entries into them from the default partition."""
    existing = {name for (name,) in connection.execute(SQL.list_partitions)}
    for month in _months(now, _MONTHS_AHEAD + 1):
        if _name(month) not in existing:
            with connection.transaction():
                _add(connection, month)


def prune(connection: psycopg.Connection[Any], before: datetime) -> int:
    """Removes the entries of all months that ended before this time.

    Keeps all entries of the month that contains `before`. Also removes the records of workspaces
    that were deleted before this time. Returns the number of partitions that were dropped.
    """
    connection.execute(SQL.prune_deleted_workspaces, {"before": before})
    dropped = 0
    for (name,) in connection.execute(SQL.list_partitions).fetchall():
        if _end(_month(name)) <= before:
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
            dropped += 1
    month = before.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    connection.execute(SQL.prune_default_partition, {"first_id": first_audit_id(month)})
    return dropped


def _add(connection: psycopg.Connection[Any], month: datetime) -> None:
    low, high = first_audit_id(month), first_audit_id(_end(month))
    names = {"new": sql.Identifier(_name(month)), "rest": sql.Identifier(_DEFAULT)}
    statements: list[LiteralString] = [
        "CREATE TABLE {new} (LIKE audit_entries INCLUDING ALL)",
        "WITH moved AS (DELETE FROM {rest} WHERE id >= {low} AND id < {high} RETURNING *) "
        "INSERT INTO {new} SELECT * FROM moved",
        "ALTER TABLE audit_entries ATTACH PARTITION {new} FOR VALUES FROM ({low}) TO ({high})",
    ]
    for statement in statements:
        connection.execute(
            sql.SQL(statement).format(**names, low=sql.Literal(low), high=sql.Literal(high))
        )


def _months(first: datetime, count: int) -> Iterator[datetime]:
    month = datetime(first.year, first.month, 1, tzinfo=UTC)
    for _ in range(count):
        yield month
        month = _end(month)


def _end(month: datetime) -> datetime:
    """The beginning of the next month."""
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


def _name(month: datetime) -> str:
    return f"audit_entries_{month:%Y_%m}"


def _month(name: str) -> datetime:
    year, month = name.split("_")[-2:]
    return datetime(int(year), int(month), 1, tzinfo=UTC)
