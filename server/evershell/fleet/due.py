"""Decides what is due, and when the controller reads it.

Every second, the controller reads what is due (core/due.py) through indexes: pages of each kind,
while there is room for its work. At least once a minute, it also compares every workspace that
should have a pod with the pod, a page at a time. Notifications only make a step happen earlier: the
reads find all work without them.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import structlog

from evershell.core.bounds import LATE_SECONDS, Bounds
from evershell.core.due import Due, DueWork, Kind, Place
from evershell.core.ports import Clock, Store
from evershell.core.task import Task
from evershell.core.workspace import Workspace

log = structlog.get_logger()

# How often the controller reads what is due.
SCAN_SECONDS = 1.0
# The longest time that a sweep takes to read every workspace with a pod. Sweeps are shorter if idle
# workspaces are suspended after less time.
SWEEP_SECONDS = 60.0
# The maximum number of rows of each kind in one read, and of workspaces in one page of a sweep.
PAGE_SIZE = 500


class Overdue:
    """Decides whether agents are overdue."""

    def __init__(self, bounds: Bounds, clock: Clock, last_outage_at: datetime) -> None:
        """`last_outage_at` is when the control plane was last known not to answer."""
        self._bounds = bounds
        self._clock = clock
        self.last_outage_at = last_outage_at
        self._are_answering = True

    def reason(
        self, workspace: Workspace, task: Task | None, lease_seconds_left: float | None = None
    ) -> str | None:
        """Why the agent is overdue, as a human-readable text; None if it is not overdue."""
        if lease_seconds_left is not None and lease_seconds_left < 0:
            return "its agent did not renew its lease in time"
        return self.violation(workspace, task)

    def violation(self, workspace: Workspace, task: Task | None) -> str | None:
        """Like `reason`, but ignores the lease."""
        return self._bounds.violation(workspace, task, self._clock(), self.last_outage_at)

    def note_outage(self) -> None:
        """Notes that a part of the control plane does not answer now."""
        self.last_outage_at = self._clock()

    def note_workers(self, silences: Sequence[float]) -> None:
        """Notes whether the workers answer."""
        are_answering = self._bounds.are_answering(silences)
        if not are_answering:
            self.note_outage()
        if self._are_answering != are_answering:
            self._are_answering = are_answering
            event = "workers_answer_again" if are_answering else "workers_silent"
            log.warning(event, silent_seconds=[round(each, 1) for each in silences])


class DueReader:
    """Reads what is due.

    Leases are only ever extended. So after a read, no known lease can run out before the earliest
    end that was read, and no new lease before the length of a lease has passed. Until then, leases
    are not read again. They have no index, because every heartbeat would have to update it.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        bounds: Bounds,
        overdue: Overdue,
        monotonic: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._store = store
        self._clock = clock
        self._bounds = bounds
        self._overdue = overdue
        self._monotonic = monotonic
        self._read_leases_at = float("-inf")
        # For each kind with more rows than a page, the place of the last row that was read. The
        # next read continues there, so that rows that stay due do not hide the others.
        self._places: dict[Kind, Place] = {}

    async def read(self, kinds: Collection[Kind]) -> DueWork:
        """Reads a page of each of these kinds. Raises UnavailableError."""
        await self.read_workers()
        wanted = {kind: self._places.get(kind) for kind in kinds}
        if not await self._may_leases_be_over():
            wanted.pop(Kind.LEASE, None)
            # The next read of leases begins with the first row, even if the last read returned a
            # full page.
            self._places.pop(Kind.LEASE, None)
        found = await self._page(wanted)
        for kind in wanted:
            rows = found.rows.get(kind, ())
            if len(rows) < PAGE_SIZE:
                self._places.pop(kind, None)
            else:
                self._places[kind] = rows[-1].place
        overdue = [
            each
            for each in found.rows.get(Kind.OVERDUE, ())
            if self._overdue.violation(each.workspace, each.task)
        ]
        return replace(found, rows={**found.rows, Kind.OVERDUE: overdue})

    def is_round_over(self, kind: Kind) -> bool:
        """Whether the last read reached the kind's last row.

        The next read then begins with the first row.
        """
        return kind not in self._places

    async def every(self, kind: Kind) -> AsyncIterator[Sequence[Due]]:
        """Reads all rows of the kind, page by page. Raises UnavailableError."""
        place: Place | None = None
        while True:
            page = (await self._page({kind: place})).rows.get(kind, ())
            yield page
            if len(page) < PAGE_SIZE:
                return
            place = page[-1].place

    async def _page(self, wanted: Mapping[Kind, Place | None]) -> DueWork:
        return await self._store.due(self._clock(), wanted, PAGE_SIZE, self._bounds)

    async def read_workers(self) -> None:
        """Notes an outage if the workers are silent or the database answers late.

        Raises UnavailableError.
        """
        asked_at = self._monotonic()
        self._overdue.note_workers(await self._store.worker_silences())
        if self._monotonic() - asked_at > LATE_SECONDS:
            self._overdue.note_outage()

    async def _may_leases_be_over(self) -> bool:
        now = self._monotonic()
        if now < self._read_leases_at:
            return False
        first_seconds = await self._store.lease_seconds_left()
        if first_seconds is not None and first_seconds < 0:
            return True
        lease_seconds = self._bounds.lease_seconds
        known_seconds = lease_seconds if first_seconds is None else first_seconds
        self._read_leases_at = now + min(known_seconds, lease_seconds)
        return False


class Sweep:
    """Reads every workspace with a pod, in sweeps.

    The first sweep has no pauses. Each later sweep is spread over `sweep_seconds`.
    """

    def __init__(
        self,
        store: Store,
        monotonic: Callable[[], float] = lambda: time.monotonic(),
        sweep_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._sweep_seconds = sweep_seconds
        self._after_id = ""
        self._pages = 0
        # In the first sweep, every page is due at once.
        self._next_at = float("-inf")
        self._interval_seconds = 0.0

    async def due_pages(self) -> AsyncIterator[Sequence[Workspace]]:
        """Reads the pages that are due now.

        Raises UnavailableError. The next call then continues with the page that was not read.
        """
        while self._next_at <= (now := self._monotonic()):
            page = await self._store.list_wanted_pods(self._after_id, PAGE_SIZE)
            self._pages += 1
            if len(page) == PAGE_SIZE:
                self._after_id = page[-1].id
                self._next_at += self._interval_seconds
            else:
                self._after_id = ""
                self._interval_seconds = self._sweep_seconds / self._pages
                self._next_at = now + self._interval_seconds
                self._pages = 0
            yield page
