"""The partitions of the audit log, one for each month. Run as the role that owns the tables."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from evershell.core.ids import first_audit_id

# Partitions exist for this month and the months after it.
_MONTHS_AHEAD = 12
_DEFAULT = "audit_entries_default"
_PARTITIONS: LiteralString = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'audit_entries'::regclass AND relname <> 'audit_entries_default'
    ORDER BY relname
"""


def add_partitions(connection: psycopg.Connection[Any], now: datetime) -> None:
    """Adds the missing partitions, and moves their entries from the default partition."""
    existing = {name for (name,) in connection.execute(_PARTITIONS)}
    for month in _months(now, _MONTHS_AHEAD + 1):
        if _name(month) not in existing:
            with connection.transaction():
                _add(connection, month)


def prune(connection: psycopg.Connection[Any], before: datetime) -> int:
    """Removes the entries of all months that ended before this time. Returns the number of months.

    The month that holds `before` is kept whole.
    """
    dropped = 0
    for (name,) in connection.execute(_PARTITIONS).fetchall():
        if _end(_month(name)) <= before:
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
            dropped += 1
    month = before.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    connection.execute(
        sql.SQL("DELETE FROM {} WHERE id < %s").format(sql.Identifier(_DEFAULT)),
        (first_audit_id(month),),
    )
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
    """The begin of the next month."""
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


def _name(month: datetime) -> str:
    return f"audit_entries_{month:%Y_%m}"


def _month(name: str) -> datetime:
    year, month = name.split("_")[-2:]
    return datetime(int(year), int(month), 1, tzinfo=UTC)
