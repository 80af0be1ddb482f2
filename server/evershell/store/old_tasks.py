"""Finds and removes old tasks. functions/remove_old_tasks.sql has the rules."""

from collections.abc import Sequence
from datetime import datetime

from evershell.core.ports import Removed
from evershell.store.connections import Pool, fetch_all, fetch_one

# The first event of each workspace, by the primary key of the events.
_LIST_OLD_LOGS = (
    "SELECT id, coalesce((SELECT time FROM events WHERE workspace_id = w.id ORDER BY seq LIMIT 1) "
    "< %s, false) AS is_old FROM workspaces w WHERE id > %s ORDER BY id LIMIT %s"
)
_REMOVE = (
    "SELECT /* remove_old_tasks */ task_count, event_count, last_seq "
    "FROM remove_old_tasks(%s, %s, %s, %s)"
)
# The ids of tasks begin with the time, so the first task that has ended is about the oldest.
_OLDEST_END = "SELECT completed_at FROM tasks WHERE completed_at IS NOT NULL ORDER BY id LIMIT 1"


class OldTasks:
    """Implements Store.list_old_logs, Store.remove_old_tasks and Store.oldest_end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_old_logs(
        self, before: datetime, after_id: str, limit: int
    ) -> tuple[Sequence[str], str | None]:
        rows = await fetch_all(self._pool, _LIST_OLD_LOGS, (before, after_id, limit))
        last_id = rows[-1].id if len(rows) == limit else None
        return [row.id for row in rows if row.is_old], last_id

    async def remove_old_tasks(
        self, workspace_id: str, before: datetime, after_seq: int, limit: int
    ) -> Removed:
        row = await fetch_one(self._pool, _REMOVE, (workspace_id, before, after_seq, limit))
        return Removed(row.task_count, row.event_count, row.last_seq)

    async def oldest_end(self) -> datetime | None:
        row = await fetch_one(self._pool, _OLDEST_END, ())
        return None if row is None else row.completed_at
