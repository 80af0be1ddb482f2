"""Removes old tasks with their events, in small transactions with pauses between them."""

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from evershell.core.ports import Clock, Store
from evershell.fleet.periodic import paced

log = structlog.get_logger()

# How many workspaces a statement looks at.
_PAGE_SIZE = 500
# How many events a transaction looks at.
BATCH_EVENTS = 500


class Retention:
    """Removes old tasks (TASK_RETENTION_DAYS) during one term of leadership."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        kept: timedelta,
        removed: Callable[[int], None] = lambda tasks: None,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keeps tasks for `kept` after their end.

        `removed` is called with the number of tasks that each transaction has removed.
        """
        self._store = store
        self._clock = clock
        self._kept = kept
        self._removed = removed
        self._leads = leads

    async def sweep(self) -> None:
        """Removes the old tasks of every workspace, once. Raises UnavailableError."""
        before = self._clock() - self._kept
        after_id: str | None = ""
        while after_id is not None:
            page = self._store.list_old_logs(before, after_id, _PAGE_SIZE)
            workspace_ids, after_id = await paced(page)
            for workspace_id in workspace_ids:
                await self._remove_old_tasks(workspace_id, before)

    async def _remove_old_tasks(self, workspace_id: str, before: datetime) -> None:
        after_seq, is_all = 0, False
        while not is_all and self._leads():
            removed = await paced(
                self._store.remove_old_tasks(workspace_id, before, after_seq, BATCH_EVENTS)
            )
            self._removed(removed.tasks)
            after_seq, is_all = removed.last_seq, removed.events < BATCH_EVENTS
