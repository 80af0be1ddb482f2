"""The controller finds the work that is due, and does it.

due.py reads what is due, and work.py says how each kind of work is done. Each kind has its own
share (how much of it runs at once), so that no kind delays another.

One controller leads, and any number of controllers stand by.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog

from evershell.core.bounds import LATE_SECONDS
from evershell.core.due import Due, Kind, next_step
from evershell.core.errors import UnavailableError
from evershell.core.ports import UNDELIVERED
from evershell.core.task import Task
from evershell.core.workspace import WANTS_POD, Workspace
from evershell.fleet.due import SCAN_SECONDS, SWEEP_SECONDS, DueReader, Overdue, Sweep
from evershell.fleet.limits import Limits
from evershell.fleet.parts import Parts
from evershell.fleet.pods import Changes
from evershell.fleet.redelivery import Redelivery
from evershell.fleet.steps import NotLeadingError, Steps
from evershell.fleet.work import table

log = structlog.get_logger()


class Controller:
    """The controller of one term of leadership."""

    def __init__(
        self,
        parts: Parts,
        last_outage_at: datetime,
        background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ) -> None:
        """Prepares a term of leadership.

        `last_outage_at` is when the control plane was last known not to answer, or the start of the
        term. The functions in `background` also run until the end of the term.
        """
        store, clock, self._backlog = parts.store, parts.clock, parts.backlog
        self._store = store
        self._pods = parts.pods
        self._background = background
        self._overdue = Overdue(parts.bounds, clock, last_outage_at)
        self._reader = DueReader(store, clock, parts.bounds, self._overdue)
        self._redelivery = (
            Redelivery(parts.agents, clock)
            if parts.backlog is None
            else Redelivery(parts.agents, clock, parts.backlog.redelivered)
        )
        steps = Steps(parts, self._reader, self._overdue, self._watch_exit)
        self._work = table(steps, Limits(store, clock, self._signal), self._redelivery)
        self._shares = {kind: asyncio.Semaphore(each.share) for kind, each in self._work.items()}
        sweep_seconds = SWEEP_SECONDS
        if parts.suspend_after is not None:
            sweep_seconds = min(sweep_seconds, parts.suspend_after.total_seconds())
        self._sweep = Sweep(store, sweep_seconds=sweep_seconds)
        # The ids of the workspaces that the next scan reads again.
        self._again: set[str] = set()
        # The work that runs or waits for its turn. At most one piece for each key.
        self._in_hand: dict[Hashable, asyncio.Task[None]] = {}
        self._numbers = Counter[Kind]()
        # The asyncio tasks that wait for the exit of an agent, by workspace id and epoch.
        self._exits: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def run(self, changes: Changes) -> None:
        """Does what is due until it is cancelled. Pods keep running after that."""
        background = [asyncio.create_task(run()) for run in self._background]
        try:
            await self._pods.sync()
            while True:
                try:
                    await self._scan()
                    await self._reconcile_changes(changes)
                except UnavailableError:
                    log.warning("database_unavailable")
                    self._again |= await changes.wait(SCAN_SECONDS)
                    self._overdue.note_outage()
        finally:
            for task in (*background, *self._exits.values(), *self._in_hand.values()):
                task.cancel()
            if self._backlog is not None:
                self._backlog.clear()

    async def _scan(self) -> None:
        kinds = [kind for kind in Kind if kind is not Kind.CHECK]
        while kinds := [kind for kind in kinds if self._has_room(kind)]:
            await self._begin_page(kinds)
            kinds = [kind for kind in kinds if not self._reader.is_round_over(kind)]
        again, self._again = self._again, set()
        await self._reconcile_ids(again)
        if self._has_room(Kind.CHECK):
            async for page in self._sweep.due_pages():
                for workspace in page:
                    self._begin_step(workspace)

    async def _begin_page(self, kinds: Sequence[Kind]) -> None:
        """Begins the work on the next page of each of these kinds."""
        found = await self._reader.read(kinds)
        if self._backlog is not None:
            self._backlog.set_open_cancellations(
                found.open_cancellations, found.oldest_cancellation
            )
        for kind in kinds:
            rows = found.rows.get(kind, ())
            if kind is Kind.CANCELLATION:
                is_last = self._reader.is_round_over(kind)
                rows = list(self._redelivery.due(rows, is_last=is_last))
            for due in rows:
                self._begin(due)

    async def _reconcile_changes(self, changes: Changes) -> None:
        """Until the next scan is due, reconciles each workspace when its change is published."""
        scan_at = time.monotonic() + SCAN_SECONDS
        while (left_seconds := scan_at - time.monotonic()) > 0:
            changed = await changes.wait(left_seconds)
            if time.monotonic() - scan_at > LATE_SECONDS:
                # The wait ended late, so this machine was paused or is overloaded. The controller's
                # own work between two waits is not measured: it may take long, but does not affect
                # agents.
                self._overdue.note_outage()
            await self._reconcile_ids(changed)

    async def _reconcile_ids(self, workspace_ids: set[str]) -> None:
        """Reads and reconciles these workspaces.

        After an UnavailableError, the next scan reads them again. The id UNDELIVERED stands for all
        cancelled tasks that have not ended.
        """
        try:
            if UNDELIVERED in workspace_ids:
                async for page in self._reader.every(Kind.CANCELLATION):
                    for due in self._redelivery.due(page, at_once=True):
                        self._begin(due)
            for workspace_id in workspace_ids - {UNDELIVERED}:
                workspace = await self._store.get_workspace(workspace_id)
                if workspace is not None and (
                    workspace.status in WANTS_POD or workspace.awaits_controller
                ):
                    self._begin_step(workspace)
        except UnavailableError:
            self._again |= workspace_ids
            raise

    def _signal(self, workspace: Workspace, task: Task) -> None:
        """Signals the cancellation of the task."""
        assert task.cancel is not None
        cancelled = Due(Kind.CANCELLATION, task.cancel.requested_at, workspace, task)
        for due in self._redelivery.due([cancelled], at_once=True):
            self._begin(due)

    def _begin_step(self, workspace: Workspace) -> None:
        """Begins the next step of the workspace."""
        self._begin(Due(next_step(workspace), workspace.updated_at, workspace))

    def _has_room(self, kind: Kind) -> bool:
        return self._numbers[kind] < self._work[kind].room

    def _begin(self, due: Due) -> None:
        """Begins the work, unless work with the same key already runs or waits for its turn.

        A later scan finds work that was not begun, if it is still due. But nothing records that a
        check is due, so for a check, the id of the workspace is kept for the next scan.
        """
        kind, key = due.kind, self._work[due.kind].key(due)
        if key in self._in_hand:
            if kind is Kind.CHECK:
                self._again.add(due.workspace.id)
            return

        def end(_: object) -> None:
            del self._in_hand[key]
            self._numbers[kind] -= 1

        self._numbers[kind] += 1
        self._in_hand[key] = asyncio.create_task(self._do(due))
        self._in_hand[key].add_done_callback(end)

    async def _do(self, due: Due) -> None:
        work, workspace_id = self._work[due.kind], due.workspace.id
        try:
            async with self._shares[due.kind]:
                await work.do(due)
            return
        except UnavailableError:
            # The database does not answer, or a row is locked.
            log.warning("database_unavailable", kind=due.kind, workspace_id=workspace_id)
            if not work.is_step:
                self._overdue.note_outage()
        except NotLeadingError:
            log.warning("step_without_leadership", workspace_id=workspace_id)
        except Exception:
            log.exception("unexpected_error", kind=due.kind, workspace_id=workspace_id)
        if work.is_step:
            self._again.add(workspace_id)

    def _watch_exit(self, workspace: Workspace) -> None:
        """Reconciles the workspace once the agent of this epoch has exited."""
        key = (workspace.id, workspace.epoch)
        if key not in self._exits:
            self._exits[key] = asyncio.create_task(self._await_exit(workspace))

    async def _await_exit(self, workspace: Workspace) -> None:
        await self._pods.wait_exit(workspace)
        del self._exits[workspace.id, workspace.epoch]
        with suppress(UnavailableError):
            await self._reconcile_ids({workspace.id})
