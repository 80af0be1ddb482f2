"""Reconciles pods with the database.

The controller starts the pods that are wanted, ends all other pods, fails workspaces that have lost
their agent, and removes workspaces that are being deleted. due.py says which workspaces it reads,
and when.

One controller leads, and any number of controllers stand by. Each pass over a workspace compares
what the database wants with what runs, and takes one step. A controller may therefore die between
any two steps, and the next leader continues.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import structlog

from evershell.core import workspace_lifecycle
from evershell.core.bounds import LATE_SECONDS, Bounds
from evershell.core.change import Change, Locked
from evershell.core.errors import UnavailableError
from evershell.core.ports import UNDELIVERED, Agents, Clock, Store
from evershell.core.task import Task
from evershell.core.workspace import WANTS_POD, Workspace, WorkspaceStatus
from evershell.fleet.due import (
    SCAN_SECONDS,
    SWEEP_SECONDS,
    Due,
    Overdue,
    Sweep,
    end_unstarted,
    enforce_limits,
)
from evershell.fleet.pods import Changes, Pods
from evershell.fleet.redelivery import Redelivery
from evershell.telemetry.backlog import Backlog

log = structlog.get_logger()
# How long a pod may take to end before it is killed.
END_GRACE_SECONDS = 3.0
# How many workspaces are removed at once.
_REMOVALS_AT_ONCE = 4


class _NotLeadingError(Exception):
    """The controller's term of leadership has ended."""


class Controller:
    """The controller of one term of leadership."""

    def __init__(
        self,
        store: Store,
        pods: Pods,
        agents: Agents,
        bounds: Bounds,
        run_id: str,
        clock: Clock,
        last_outage_at: datetime,
        backlog: Backlog | None = None,
        *,
        suspend_after: timedelta | None = None,
        background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepares a term of leadership.

        `run_id` is the id of this run of the stack. Pods of other runs have ended. `last_outage_at`
        is when the control plane was last known not to answer, or the start of the term. Without
        `backlog`, nothing is measured. Workspaces that have been idle for `suspend_after` are
        suspended; None means never. The functions in `background` also run until the end of the
        term. `leads` says whether the term still lasts.
        """
        self._leads = leads
        self._store = store
        self._pods = pods
        self._backlog = backlog
        self._background = background
        self._redelivery = (
            Redelivery(agents) if backlog is None else Redelivery(agents, backlog.redelivered)
        )
        self._run_id = run_id
        self._clock = clock
        self._overdue = Overdue(bounds, clock, last_outage_at)
        self._due = Due(store, self._overdue, bounds.lease_seconds)
        self._suspend_after = suspend_after
        sweep_seconds = SWEEP_SECONDS
        if suspend_after is not None:
            sweep_seconds = min(sweep_seconds, suspend_after.total_seconds())
        self._sweep = Sweep(store, sweep_seconds=sweep_seconds)
        # Workspaces that the next scan reads again, by id.
        self._again: set[str] = set()
        self._removals = asyncio.Semaphore(_REMOVALS_AT_ONCE)
        # The epoch of the last pod that this controller has started, by workspace id.
        self._started: dict[str, int] = {}
        # The running steps by workspace id, at most one per workspace.
        self._steps: dict[str, asyncio.Task[None]] = {}
        # The asyncio tasks that wait for the exit of an agent, by workspace id and epoch.
        self._exits: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def run(self, changes: Changes) -> None:
        """Reconciles until it is cancelled. Pods continue to run."""
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
            self._redelivery.stop()
            for task in (*background, *self._exits.values(), *self._steps.values()):
                task.cancel()
            if self._backlog is not None:
                self._backlog.clear()

    async def _scan(self) -> None:
        has_reached_limits = False
        try:
            has_reached_limits = await enforce_limits(self._store, self._clock)
        except UnavailableError:
            # The database did not answer, or a workspace is locked. The scan continues, so that
            # other workspaces are not delayed.
            log.warning("limits_not_enforced")
            self._overdue.note_outage()
        due = await self._due.read()
        for workspace in due.overdue:
            self._begin_step(workspace, is_overdue=True)
        for workspace in due.unsettled:
            self._begin_step(workspace)
        await self._follow(due.cancellations, at_once=has_reached_limits)
        again, self._again = self._again, set()
        await self._reconcile_ids(again)
        async for page in self._sweep.due_pages():
            for workspace in page:
                self._begin_step(workspace)

    async def _follow(
        self, cancellations: Sequence[tuple[Workspace, Task]], *, at_once: bool = False
    ) -> None:
        """Redelivers the cancellations that are due, or all of them with `at_once`.

        Ends the cancelled tasks that no agent has.
        """
        delivered = [each for each in cancellations if not each[0].is_waking]
        self._redelivery.follow(delivered, self._clock(), at_once=at_once)
        if self._backlog is not None:
            self._backlog.set_open_cancellations(
                task.cancel.requested_at for _, task in cancellations if task.cancel
            )
        # This comes last, because a locked workspace raises an error.
        waking = [each.id for each, _ in cancellations if each.is_waking]
        await end_unstarted(self._store, self._clock, waking)

    async def _reconcile_changes(self, changes: Changes) -> None:
        """Reconciles workspaces when their changes are published, until the next scan is due."""
        scan_at = time.monotonic() + SCAN_SECONDS
        while (left_seconds := scan_at - time.monotonic()) > 0:
            changed = await changes.wait(left_seconds)
            if time.monotonic() - scan_at > LATE_SECONDS:
                # This machine stood still or is overloaded. Only the wait is measured: the
                # controller's own work between two waits may also take long, but it does not affect
                # agents.
                self._overdue.note_outage()
            await self._reconcile_ids(changed)

    async def _reconcile_ids(self, workspace_ids: set[str]) -> None:
        """Reads and reconciles these workspaces.

        After an UnavailableError, the next scan reads them again. UNDELIVERED stands for all
        cancellations.
        """
        try:
            if UNDELIVERED in workspace_ids:
                await self._follow(await self._store.list_cancellations(), at_once=True)
            for workspace_id in workspace_ids - {UNDELIVERED}:
                workspace = await self._store.get_workspace(workspace_id)
                if workspace is not None and (
                    workspace.status in WANTS_POD or workspace.awaits_controller
                ):
                    self._begin_step(workspace)
        except UnavailableError:
            self._again |= workspace_ids
            raise

    def _begin_step(self, workspace: Workspace, *, is_overdue: bool = False) -> None:
        """Starts to reconcile the workspace.

        If a step for it is already running, the next scan does so.
        """
        if workspace.id in self._steps:
            self._again.add(workspace.id)
            return
        step = asyncio.create_task(self._reconcile(workspace, is_overdue=is_overdue))
        self._steps[workspace.id] = step
        step.add_done_callback(lambda _: self._steps.pop(workspace.id, None))

    async def _reconcile(self, workspace: Workspace, *, is_overdue: bool) -> None:
        try:
            if workspace.status is WorkspaceStatus.SUSPENDED:
                await self._end_suspended(workspace)
                return
            if workspace.run_id != self._run_id and not workspace.awaits_removal:
                workspace = await self._reconcile_run(workspace)
            if workspace.awaits_removal:
                await self._remove(workspace)
            elif workspace.run_id != self._run_id:
                return
            elif workspace.status in (WorkspaceStatus.STOPPING, WorkspaceStatus.DELETING):
                await self._reconcile_stop(workspace)
            elif self._needs_start(workspace):
                await self._reconcile_start(workspace)
            else:
                await self._reconcile_agent(workspace, is_overdue=is_overdue)
        except UnavailableError:
            log.warning("database_unavailable", workspace_id=workspace.id)
            self._again.add(workspace.id)
        except _NotLeadingError:
            log.warning("step_without_leadership", workspace_id=workspace.id)
            self._again.add(workspace.id)
        except Exception:
            log.exception("unexpected_error", workspace_id=workspace.id)
            self._again.add(workspace.id)

    async def _reconcile_run(self, workspace: Workspace) -> Workspace:
        """Ends the pods of an earlier run of the stack, then assigns the workspace to this run.

        The assignment comes last, because it ends the task of the earlier run.
        """
        stopped = workspace.run_id is None or await self._end_pod(workspace, END_GRACE_SECONDS)
        return await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.place(
                locked, workspace.epoch, self._run_id, now, work_stopped=stopped
            ),
        )

    def _needs_start(self, workspace: Workspace) -> bool:
        """Whether the agent must be started.

        If another controller started the agent and it ended before it registered, the controller
        may have died during the start. The agent is then started once more.
        """
        if workspace.status is not WorkspaceStatus.PROVISIONING:
            return False
        if not self._pods.was_started(workspace):
            return True
        return self._started.get(workspace.id) != workspace.epoch and not self._pods.is_alive(
            workspace
        )

    async def _reconcile_start(self, workspace: Workspace) -> None:
        if not self._pods.has_never_run(workspace.id):
            # Another controller may have started the pod and died before the agent registered.
            await self._end_pod(workspace, 0)
        current = await self._store.get_workspace(workspace.id)
        if (
            current is None
            or current.epoch != workspace.epoch
            or current.status is not WorkspaceStatus.PROVISIONING
        ):
            # While the pod ended, another controller may have become the leader and started a pod
            # of a later epoch.
            return
        self._require_term()
        self._started[workspace.id] = workspace.epoch
        try:
            await self._pods.start(workspace)
        except OSError as error:
            await self._fail(
                workspace, f"its agent could not be started: {error.strerror or error}"
            )
            return
        log.info("pod_started", workspace_id=workspace.id, epoch=workspace.epoch)
        self._watch_exit(workspace)

    async def _reconcile_agent(self, workspace: Workspace, *, is_overdue: bool) -> None:
        """Fails the workspace if its agent has ended or is overdue.

        Suspends it if it was idle too long.
        """
        if not self._pods.is_alive(workspace):
            await self._fail(workspace, self._failure_reason(workspace))
        elif is_overdue:
            await self._end_overdue(workspace)
        elif self._is_idle_too_long(workspace):
            await self._suspend(workspace)
        else:
            self._watch_exit(workspace)

    def _is_idle_too_long(self, workspace: Workspace) -> bool:
        after = self._suspend_after
        return (
            after is not None
            and workspace.status is WorkspaceStatus.IDLE
            and self._clock() >= workspace.updated_at + after
        )

    async def _suspend(self, workspace: Workspace) -> None:
        suspended = await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.suspend(locked, workspace.updated_at, now),
        )
        if suspended.status is WorkspaceStatus.SUSPENDED:
            await self._end_suspended(suspended)

    async def _end_suspended(self, workspace: Workspace) -> None:
        """Ends the pod of a suspended workspace.

        The agent is fenced, so it would also end by itself.
        """
        await self._end_pod(workspace, END_GRACE_SECONDS)
        await self._apply(
            workspace,
            lambda locked, _: workspace_lifecycle.finish_suspension(locked, workspace.epoch),
        )
        log.info("pod_suspended", workspace_id=workspace.id, epoch=workspace.epoch)

    def _watch_exit(self, workspace: Workspace) -> None:
        """Reconciles the workspace when the agent of this epoch has exited."""
        key = (workspace.id, workspace.epoch)
        if key not in self._exits:
            self._exits[key] = asyncio.create_task(self._await_exit(workspace))

    async def _await_exit(self, workspace: Workspace) -> None:
        await self._pods.wait_exit(workspace)
        del self._exits[workspace.id, workspace.epoch]
        with suppress(UnavailableError):
            await self._reconcile_ids({workspace.id})

    async def _end_overdue(self, workspace: Workspace) -> None:
        """Ends the pod of an overdue agent, and its task.

        Reads the workers, the workspace, its task and its lease again first: a worker may have
        stopped answering since the scan, the task may have ended, or the agent may have recovered.
        """
        await self._due.read_workers()
        current = await self._store.get_workspace(workspace.id)
        if current is None or current.epoch != workspace.epoch:
            return
        task = (
            await self._store.get_task(current.id, current.current_task_id)
            if current.current_task_id
            else None
        )
        lease_seconds_left = await self._store.lease_seconds_left(current.id)
        reason = self._overdue.reason(current, task, lease_seconds_left)
        if reason is not None:
            explanation = self._pods.explain(current)
            await self._fail(current, f"{reason}: {explanation}" if explanation else reason, task)

    def _failure_reason(self, workspace: Workspace) -> str:
        if explanation := self._pods.explain(workspace):
            return explanation
        log_tail = self._pods.log_tail(workspace.id)
        if workspace.status is WorkspaceStatus.PROVISIONING and log_tail:
            return f"its agent ended before it registered: {log_tail[:300]}"
        return "its agent's process ended unexpectedly"

    async def _fail(self, workspace: Workspace, reason: str, overdue: Task | None = None) -> None:
        """Ends everything that runs in the pod, and then the task.

        The workspace's record decides what follows. `overdue` is the overdue task because of which
        the pod is ended, if there is one.
        """
        stopped = await self._end_pod(workspace, 0)
        await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.lose_agent(
                locked, workspace.epoch, reason, now, work_stopped=stopped, overdue=overdue
            ),
        )
        log.warning("agent_lost", workspace_id=workspace.id, epoch=workspace.epoch, reason=reason)

    async def _reconcile_stop(self, workspace: Workspace) -> None:
        """Ends the pod of a workspace that is stopping or deleting, once its task has ended.

        Does not wait for a task that is overdue.
        """
        if workspace.current_task_id is not None and self._pods.is_alive(workspace):
            task = await self._store.get_task(workspace.id, workspace.current_task_id)
            if (
                task is not None
                and not task.status.is_terminal
                and not await self._is_overdue(workspace, task)
            ):
                return
        stopped = await self._end_pod(workspace, END_GRACE_SECONDS)
        await self._apply(
            workspace,
            lambda locked, now: workspace_lifecycle.finish_stop(
                locked, workspace.epoch, now, work_stopped=stopped
            ),
        )
        log.info("pod_stopped", workspace_id=workspace.id, epoch=workspace.epoch)

    async def _is_overdue(self, workspace: Workspace, task: Task) -> bool:
        """Whether the task is overdue, and the workers still answer."""
        if not self._overdue.violation(workspace, task):
            return False
        await self._due.read_workers()
        return self._overdue.violation(workspace, task) is not None

    async def _remove(self, workspace: Workspace) -> None:
        """Removes the files of a deleted workspace, and then its rows.

        Ends its pods first: a pod of an earlier epoch may still run if the workspace was suspended
        or has failed, because a wake and a failure clear `run_id`. The next scan continues with
        what could not be removed yet.
        """
        async with self._removals:
            await self._end_pod(workspace, 0)
            self._require_term()
            if await self._pods.remove(workspace.id) and await self._store.remove_workspace(
                workspace.id
            ):
                self._started.pop(workspace.id, None)
                log.info("workspace_removed", workspace_id=workspace.id)

    async def _end_pod(self, workspace: Workspace, grace_seconds: float) -> bool:
        self._require_term()
        return await self._pods.end(workspace, grace_seconds)

    def _require_term(self) -> None:
        """Raises _NotLeadingError after the term.

        A controller that was frozen continues with outdated state. The store refuses changes of an
        earlier epoch, but starting or ending a pod does not go through the store.
        """
        if not self._leads():
            raise _NotLeadingError

    async def _apply(
        self, workspace: Workspace, decide: Callable[[Locked, datetime], Change]
    ) -> Workspace:
        change = await self._store.transition(
            workspace.id, lambda locked: decide(locked, self._clock())
        )
        return change.workspace if change is not None else workspace
