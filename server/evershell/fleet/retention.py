"""Removes old tasks with their events, in small transactions with pauses between them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from time import monotonic
from typing import TypeVar

import structlog

from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock, Store

log = structlog.get_logger()

# The workspaces that a statement looks at, and the events that a transaction looks at.
_PAGE_SIZE = 500
BATCH_EVENTS = 500
# The share of the time in which the database works for the removal.
_SHARE = 0.1

_Answer = TypeVar("_Answer")


class Retention:
    """Removes what is older than TASK_RETENTION_DAYS, for one term of leadership."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        kept: timedelta,
        removed: Callable[[int], None] = lambda tasks: None,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Keeps tasks for `kept` after their end. Calls `removed` with numbers of tasks."""
        self._store = store
        self._clock = clock
        self._kept = kept
        self._removed = removed
        self._leads = leads

    async def sweep(self) -> None:
        """Looks at each workspace once. Raises UnavailableError."""
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


async def repeat(name: str, job: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Calls `job` until it is cancelled, and pauses after each call. No error ends it."""
    while True:
        try:
            await job()
        except UnavailableError:
            log.warning("database_unavailable", job=name)
        except Exception:
            log.exception("unexpected_error", job=name)
        await asyncio.sleep(pause_seconds)


async def paced(statement: Awaitable[_Answer]) -> _Answer:
    """Awaits the statement, and then pauses, so that the statements take _SHARE of the time."""
    began = monotonic()
    answer = await statement
    await asyncio.sleep((monotonic() - began) * (1 / _SHARE - 1))
    return answer
