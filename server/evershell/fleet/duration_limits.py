"""Cancels the tasks whose duration has reached its limit."""

import asyncio

import structlog

from evershell.core import task_lifecycle
from evershell.core.ports import Clock, Store

log = structlog.get_logger()

# How many tasks a read returns, and how many are cancelled at once.
PAGE_SIZE = 500
_AT_ONCE = 4


class DurationLimits:
    """Finds, by index, what has reached its limit.

    Commits of agents check the limits too. This finds the tasks of agents that commit nothing.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def enforce(self) -> bool:
        """Cancels what is due now. Returns whether there was anything. Raises UnavailableError."""
        due = await self._store.list_limits_reached(self._clock(), PAGE_SIZE)
        await asyncio.gather(*map(self._cancel, due))
        return bool(due)

    async def _cancel(self, workspace_id: str) -> None:
        async with self._slots:
            change = await self._store.transition(
                workspace_id, lambda locked: task_lifecycle.apply_limits(locked, self._clock())
            )
        if change is not None and change.events and change.task is not None:
            log.info("limit_reached", workspace_id=workspace_id, task_id=change.task.id)
