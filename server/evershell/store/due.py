"""Reads what is due for the fleet controller. due.sql has the query."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from evershell.core.bounds import CANCEL_MARGIN, FORCE_MARGIN, Bounds
from evershell.core.due import Due, DueWork, Kind, Place
from evershell.core.task import Task
from evershell.store.part import Part
from evershell.store.pool import connected
from evershell.store.rows import task_of, workspace_of
from evershell.store.statements import statements

SQL = statements("due")
_BEFORE_ALL = (datetime.min.replace(tzinfo=UTC), "")


def parameters(
    now: datetime, wanted: Mapping[Kind, Place | None], limit: int, bounds: Bounds
) -> dict[str, Any]:
    """The parameters of the query."""
    places = [place or _BEFORE_ALL for place in wanted.values()]
    iteration_seconds = bounds.model_timeout_seconds + bounds.tool_timeout_seconds
    return {
        "now": now,
        "kinds": [str(kind) for kind in wanted],
        "after_since": [since for since, _ in places],
        "after_ids": [last_id for _, last_id in places],
        "limit": limit,
        "lease_seconds": bounds.lease_seconds,
        "start_seconds": bounds.start_seconds,
        "force_margin_seconds": FORCE_MARGIN.total_seconds(),
        "cancel_seconds": iteration_seconds + CANCEL_MARGIN.total_seconds(),
    }


class DueQueries(Part):
    """Implements core.ports.Fleet.due."""

    async def due(
        self, now: datetime, wanted: Mapping[Kind, Place | None], limit: int, bounds: Bounds
    ) -> DueWork:
        named = parameters(now, wanted, limit, bounds)
        async with (
            connected(self._pool) as connection,
            connection.pipeline(),
            connection.transaction(),
        ):
            await connection.execute(SQL.plan_once)
            cursor = await connection.execute(SQL.due, named, prepare=True, binary=True)
            found: Any = await cursor.fetchall()
        rows = defaultdict[Kind, list[Due]](list)
        for row in found:
            if row.kind is not None:
                kind = Kind(row.kind)
                rows[kind].append(Due(kind, row.since, workspace_of(row), _task_of(row)))
        return DueWork(rows, found[0].open_cancellations, found[0].oldest_cancellation)


def _task_of(row: Any) -> Task | None:
    task = task_of(row)
    if task is None or row.kind != Kind.TREE_LIMIT:
        return task
    # PostgreSQL returns the sums as decimals, because they may exceed 64 bits.
    cost = row.tree_cost_nanos
    usage = replace(
        task.used,
        input_tokens=int(row.tree_input_tokens),
        output_tokens=int(row.tree_output_tokens),
        cost_nanos=None if cost is None else int(cost),
    )
    return replace(task, usage=usage, open_iteration=None)
