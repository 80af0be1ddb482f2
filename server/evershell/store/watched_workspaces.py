"""Marks the workspaces in which this process has subscribers, so that other processes notify it."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime

import psycopg
import structlog

from evershell.backoff import backoff
from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock
from evershell.store.batch import Batch
from evershell.store.pool import Pool, connected
from evershell.store.statements import statements

MARK_SECONDS = 60.0
# A mark is renewed at this age. A mark that another process has set more recently is kept.
RENEW_SECONDS = 20.0
# How often this process looks for marks that it must renew.
_CHECK_SECONDS = 1.0
# The most workspaces in a batch. A batch of this size locks its rows for about a millisecond.
_MAX_BATCH = 100
# The longest time for which a subscriber waits for its mark, for example because a transaction has
# locked the row. It then reads without the mark, and reads again once the workspace is marked.
_MARK_LIMIT_SECONDS = 0.25

SQL = statements("watched_workspaces")
_log = structlog.get_logger()


def is_watched(watched_until: datetime | None, now: datetime) -> bool:
    """Whether other processes may have subscribers for a workspace with this mark."""
    return watched_until is not None and watched_until > now


class _Mark:
    """What this process knows of the mark of one workspace. Times are of the monotonic clock."""

    __slots__ = ("failures", "is_set", "is_watched", "set_at")

    def __init__(self) -> None:
        self.is_watched = True
        # When the last statement that set or found the mark began.
        self.set_at = -math.inf
        # None unless subscribers wait for the mark. Most subscribers need not wait, because the
        # mark is in force already.
        self.is_set: asyncio.Event | None = None
        # The number of attempts in a row that did not set the mark.
        self.failures = 0


class WatchedWorkspaces:
    """Keeps a mark on each workspace in which this process has subscribers.

    The mark is the column `watched_until` of the workspace. A process that commits a change of the
    workspace reads the mark in the statement that locks the row, and notifies the other processes
    only if the mark is in the future.

    No commit is missed. A subscriber reads the workspace only after the mark is committed. A
    transaction that changes the workspace and the transaction that sets the mark both lock the row,
    so one of them is first. If the change is first, it is committed before the mark is set, and the
    subscriber reads it. If the mark is first, the process that commits the change sees the mark,
    and notifies the other processes.

    The mark expires after MARK_SECONDS. While there are subscribers, it is renewed long before.
    Whenever a mark comes into force, the subscribers are woken and read again. This covers a new
    mark, a late renewal, marks that were lost in a crash of the database, and notifications that a
    listener missed while it reconnected.
    """

    def __init__(
        self,
        pool: Pool,
        wake: Callable[[str], None],
        clock: Clock,
        *,
        mark_seconds: float = MARK_SECONDS,
        renew_seconds: float = RENEW_SECONDS,
    ) -> None:
        """`wake` is called with each workspace whose subscribers may have missed a commit."""
        self._pool = pool
        self._wake = wake
        self._clock = clock
        self._mark_seconds = mark_seconds
        self._renew_seconds = renew_seconds
        # A mark lasts for at least this time after a statement has set or found it.
        self._kept_seconds = mark_seconds - renew_seconds
        # By workspace id. Includes marks whose last subscriber has left since the last check.
        self._marks: dict[str, _Mark] = {}
        self._due: Batch[str, None] = Batch(self._set_due_marks, at_most=_MAX_BATCH)

    async def watch(self, workspace_id: str) -> None:
        """Waits until the mark is in force, for at most _MARK_LIMIT_SECONDS."""
        mark = self._marks.setdefault(workspace_id, _Mark())
        mark.is_watched = True
        if self._is_in_force(mark):
            return
        is_set = mark.is_set = mark.is_set or asyncio.Event()
        self._due.put(workspace_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(_MARK_LIMIT_SECONDS):
                await is_set.wait()

    def leave(self, workspace_id: str) -> None:
        """Stops renewing the mark, because the last subscriber has left. The mark then expires."""
        self._marks[workspace_id].is_watched = False

    def mark_again(self) -> None:
        """Sets all marks again, and then wakes all subscribers.

        The database may have lost the marks, and this process may have missed notifications.
        """
        for workspace_id, mark in self._marks.items():
            mark.set_at = -math.inf
            self._due.put(workspace_id)

    async def run(self) -> None:
        """Renews the marks until it is cancelled."""
        try:
            while True:
                self._check()
                await asyncio.sleep(_CHECK_SECONDS)
        finally:
            self._marks.clear()
            await self._due.drained()

    def _check(self) -> None:
        """Requests the renewals that are due, and forgets the marks that nobody needs."""
        now = time.monotonic()
        for workspace_id, mark in list(self._marks.items()):
            if not mark.is_watched:
                del self._marks[workspace_id]
            elif now >= mark.set_at + self._renew_seconds:
                self._due.put(workspace_id)

    def _is_in_force(self, mark: _Mark) -> bool:
        return time.monotonic() < mark.set_at + self._kept_seconds

    async def _set_due_marks(self, workspace_ids: Sequence[str]) -> None:
        batch = {
            workspace_id: mark
            for workspace_id in workspace_ids
            if (mark := self._marks.get(workspace_id)) is not None and mark.is_watched
        }
        if not batch:
            return
        started = time.monotonic()
        marked = await self._set_marks(batch)
        for workspace_id, mark in batch.items():
            if workspace_id in marked:
                self._set(workspace_id, mark, started)
            else:
                mark.failures += 1
                # Another transaction has locked the row, or the database does not answer.
                pause = backoff(mark.failures, first=0.01, longest=1.0)
                asyncio.get_running_loop().call_later(pause, self._due.put, workspace_id)

    def _set(self, workspace_id: str, mark: _Mark, started: float) -> None:
        was_in_force = self._is_in_force(mark)
        mark.set_at = started
        mark.failures = 0
        if mark.is_set is not None:
            mark.is_set.set()
            mark.is_set = None
        if not was_in_force:
            self._wake(workspace_id)

    async def _set_marks(self, workspace_ids: Collection[str]) -> set[str]:
        """Marks the workspaces in one transaction. Returns the ids of the marked workspaces."""
        try:
            values = {
                "ids": list(workspace_ids),
                "now": self._clock(),
                "kept": self._kept_seconds,
                "mark": self._mark_seconds,
            }
            async with connected(self._pool) as connection:
                cursor = await connection.execute(SQL.set_marks, values, prepare=True)
                return {row.id for row in await cursor.fetchall()}
        except (UnavailableError, psycopg.Error) as error:
            _log.warning(
                "workspaces_not_marked", error=str(error).strip(), workspaces=len(workspace_ids)
            )
            return set()
