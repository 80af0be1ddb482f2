"""Finds and removes old tasks. functions/remove_old_tasks.sql has the rules."""

from collections.abc import Sequence
from datetime import datetime

from evershell.core.ports import Removed
from evershell.store.part import Part
from evershell.store.pool import fetch_all, fetch_one
from evershell.store.statements import statements

SQL = statements("old_tasks")


class OldTasks(Part):
    """Implements list_old_logs, remove_old_tasks and oldest_end of core.ports.Fleet."""

    async def list_old_logs(
        self, before: datetime, after_id: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        rows = await fetch_all(
            self._pool, SQL.list_old_logs, before=before, after_id=after_id, limit=limit
        )
        last_id = rows[-1].id if len(rows) == limit else None
        return [row.id for row in rows if row.is_old], last_id

    async def remove_old_tasks(
        self, workspace_id: str, before: datetime, after_seq: int, limit: int
    ) -> Removed:
        row = await fetch_one(
            self._pool,
            SQL.remove_old_tasks,
            workspace_id=workspace_id,
            before=before,
            after_seq=after_seq,
            limit=limit,
        )
        return Removed(row.task_count, row.event_count, row.last_seq)

    async def oldest_end(self) -> datetime | None:
        row = await fetch_one(self._pool, SQL.oldest_end)
        return None if row is None else row.completed_at
