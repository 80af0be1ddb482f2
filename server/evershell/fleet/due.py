"""Decides which workspaces the controller reads, and when. Makes the changes that need no pod.

Every second, the controller reads what is due: the workspaces whose state requires a step (by
index), the running tasks that are cancelled, and the leases that have run out. It reads everything
else once a minute, a page at a time. A notification only makes a step happen earlier: the reads
find everything without it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from evershell.core import task_lifecycle, task_limits
from evershell.core.bounds import LATE_SECONDS, Bounds
from evershell.core.change import Change, Locked
from evershell.core.errors import UnavailableError
from evershell.core.ports import Clock, Store
from evershell.core.task import CancelIntent, Task
from evershell.core.workspace import Workspace

log = structlog.get_logger()

# How often the controller reads what is due.
SCAN_SECONDS = 1.0
# How long it takes to read every workspace with a pod once.
SWEEP_SECONDS = 60.0
PAGE_SIZE = 500
# How many workspaces are changed at once.
_AT_ONCE = 4


class Overdue:
    """The bounds that the controller enforces on agents."""

    def __init__(self, bounds: Bounds, clock: Clock, last_outage_at: datetime) -> None:
        """`last_outage_at` is when the control plane was last known not to answer."""
        self._bounds = bounds
        self._clock = clock
        self.last_outage_at = last_outage_at
        self._are_answering = True

    def reason(
        self, workspace: Workspace, task: Task | None, lease_seconds_left: float | None = None
    ) -> str | None:
        """The human-readable reason if the agent has exceeded a bound, else None."""
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


@dataclass(frozen=True, slots=True)
class DueWork:
    """What was due at a scan."""

    # Workspaces whose agent seems to have exceeded a bound.
    overdue: Sequence[Workspace]
    # Other workspaces whose state may require a step.
    unsettled: Sequence[Workspace]
    # All cancelled tasks that have not ended, with their workspaces.
    cancellations: Sequence[tuple[Workspace, Task]]


class Due:
    """Reads what is due.

    Leases are only ever extended. So after a read, no lease can run out before the earliest end
    that was read, and no new lease before a whole lease has passed. Until then leases are not read.
    They have no index, because every heartbeat would have to change it.
    """

    def __init__(
        self,
        store: Store,
        overdue: Overdue,
        lease_seconds: float,
        monotonic: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._store = store
        self._overdue = overdue
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._read_leases_at = float("-inf")

    async def read(self) -> DueWork:
        """What is due now. Raises UnavailableError."""
        await self.read_workers()
        cancellations = await self._store.list_cancellations()
        unsettled = await self._store.list_unsettled()
        suspects = (
            *(each for each in unsettled if self._overdue.reason(each, None)),
            *(each for each, task in cancellations if self._overdue.violation(each, task)),
            *await self._expired_leases(),
        )
        overdue = {each.id: each for each in suspects}
        others = [each for each in unsettled if each.id not in overdue]
        return DueWork(list(overdue.values()), others, cancellations)

    async def read_workers(self) -> None:
        """Postpones the bounds if a worker or the database does not answer well now.

        Raises UnavailableError.
        """
        asked_at = self._monotonic()
        self._overdue.note_workers(await self._store.worker_silences())
        if self._monotonic() - asked_at > LATE_SECONDS:
            self._overdue.note_outage()

    async def _expired_leases(self) -> Sequence[Workspace]:
        now = self._monotonic()
        if now < self._read_leases_at:
            return ()
        first_seconds = await self._store.lease_seconds_left()
        if first_seconds is not None and first_seconds < 0:
            return await self._store.list_expired_leases()
        known_seconds = self._lease_seconds if first_seconds is None else first_seconds
        self._read_leases_at = now + min(known_seconds, self._lease_seconds)
        return ()


class Sweep:
    """Reads every workspace with a pod: at first without a pause, later spread over
    `sweep_seconds`.
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
        # In the first sweep, every page is due.
        self._next_at = float("-inf")
        self._interval_seconds = 0.0

    async def due_pages(self) -> AsyncIterator[Sequence[Workspace]]:
        """The pages that are due now. Raises UnavailableError; the next call then continues."""
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


async def enforce_limits(store: Store, clock: Clock) -> bool:
    """Cancels the tasks and the trees that have reached a limit. Returns whether there were any.

    An agent's commit also checks the limits of its task. This function finds, by index, the tasks
    of agents that commit nothing, and the trees whose limits include descendants. Raises
    UnavailableError.
    """
    due = await store.list_limits_reached(clock(), PAGE_SIZE)
    await _apply(store, clock, due, task_lifecycle.apply_limits, "limit_reached")
    return await _cancel_trees(store, clock()) or bool(due)


async def _cancel_trees(store: Store, now: datetime) -> bool:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def cancel(workspace: Workspace, root: Task, intent: CancelIntent) -> None:
        permission = task_limits.service_permission(workspace.org_id)
        try:
            async with slots:
                recorded = await store.cancel_tree(permission, workspace.id, root.id, intent)
        except UnavailableError:
            # One of the workspaces is locked. The next scan finds the tree again.
            log.warning("limit_of_tree_not_applied", task_id=root.id)
            return
        count = recorded.recorded + recorded.descendants_cancelled
        log.info("limit_of_tree_reached", task_id=root.id, reason=intent.reason, cancelled=count)

    reached = [
        (workspace, root, limit.intent)
        for workspace, root in await store.list_limited_trees(now)
        if (limit := task_limits.reached(root, now))
    ]
    await asyncio.gather(*(cancel(*each) for each in reached))
    return bool(reached)


async def end_unstarted(store: Store, clock: Clock, workspace_ids: Sequence[str]) -> None:
    """Ends the cancelled tasks of workspaces that are being woken. Raises UnavailableError."""
    await _apply(store, clock, workspace_ids, task_lifecycle.end_unstarted, "unstarted_task_ended")


async def _apply(
    store: Store,
    clock: Clock,
    workspace_ids: Sequence[str],
    decide: Callable[[Locked, datetime], Change],
    event: str,
) -> None:
    """Changes each of the workspaces, and logs `event` for each one that has changed."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def apply(workspace_id: str) -> None:
        async with slots:
            change = await store.transition(workspace_id, lambda locked: decide(locked, clock()))
        if change is not None and change.events and change.task is not None:
            log.info(event, workspace_id=workspace_id, task_id=change.task.id)

    await asyncio.gather(*map(apply, workspace_ids))
