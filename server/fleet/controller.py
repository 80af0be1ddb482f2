"""Makes reality follow the database: each workspace that is to have a pod has one, each that lost
its agent has failed.

One controller leads; any number stand by. Each look at a workspace compares what the database wants
with what runs and takes the one next step, so that a controller may die between any two steps and
the next one goes on from there.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from server.core import lifecycle
from server.core.bounds import Bounds
from server.core.errors import UnavailableError
from server.core.lifecycle import Change, Session
from server.core.ports import Agents, Clock, Store
from server.core.task import Task
from server.core.workspace import WANTS_POD, Workspace, WorkspaceStatus
from server.fleet.redelivery import Redelivery
from server.metrics import Backlog

log = structlog.get_logger()

# Every workspace is looked at this often, whether or not anything was announced.
SCAN_SECONDS = 1.0
# Workspaces are counted this often, for the metrics.
_COUNT_SECONDS = 10.0
# An agent that has not registered by then is taken for one that cannot start.
START_LIMIT = timedelta(seconds=30)
# How long a pod that is asked to end may take before it is killed.
END_GRACE_SECONDS = 3.0

_NO_TASKS: Mapping[str, Task] = {}


class Pods(Protocol):
    """The backend; local_pods.py says what each method does."""

    def was_started(self, workspace: Workspace) -> bool: ...
    async def start(self, workspace: Workspace) -> None: ...
    async def ended(self, workspace: Workspace) -> None: ...
    def is_alive(self, workspace: Workspace) -> bool: ...
    def has_files(self, workspace_id: str) -> bool: ...
    def last_words(self, workspace_id: str) -> str: ...
    async def end(self, workspace: Workspace, grace_seconds: float) -> bool: ...


class Changes(Protocol):
    """Which workspaces have changed."""

    async def wait(self, timeout_seconds: float) -> set[str]:
        """Those changed since the last return; empty after the timeout."""


class Controller:
    """One run of the leader. `host` names this run of the machine: pods of an earlier one are gone."""

    def __init__(
        self,
        store: Store,
        pods: Pods,
        agents: Agents,
        bounds: Bounds,
        host: str,
        clock: Clock,
        answering_since: datetime,
        backlog: Backlog | None = None,
    ) -> None:
        """`answering_since` is when this run began, since earlier outages of the database are
        unknown.

        Without `backlog`, nothing is measured.
        """
        self._store = store
        self._pods = pods
        self._backlog = backlog
        self._redelivery = (
            Redelivery(agents) if backlog is None else Redelivery(agents, backlog.redelivered)
        )
        self._bounds = bounds
        self._host = host
        self._clock = clock
        self._answering_since = answering_since
        # One step at a time for a workspace; steps of different workspaces do not wait for each
        # other.
        self._steps: dict[str, asyncio.Task[None]] = {}
        self._watched: dict[str, asyncio.Task[None]] = {}

    async def run(self, changes: Changes) -> None:
        """Leads until it is cancelled. Pods live on."""
        counting = asyncio.create_task(self._count_workspaces())
        try:
            while True:
                try:
                    cancellations = await self._store.list_cancellations()
                    cancelled = {workspace.id: task for workspace, task in cancellations}
                    for workspace in await self._store.list_wanted_pods():
                        self._take_step(workspace, cancelled)
                    self._redelivery.follow(cancellations, self._clock())
                    if self._backlog is not None:
                        self._backlog.saw_cancellations(
                            task.cancel.requested_at for _, task in cancellations if task.cancel
                        )
                    await self._follow(changes)
                except UnavailableError:
                    log.warning("database_unavailable")
                    await changes.wait(SCAN_SECONDS)
                    self._answering_since = self._clock()
        finally:
            self._redelivery.stop()
            for task in (counting, *self._steps.values(), *self._watched.values()):
                task.cancel()
            if self._backlog is not None:
                self._backlog.clear()

    async def _count_workspaces(self) -> None:
        """Beside the scans: it reads all workspaces, and no scan waits for it."""
        while self._backlog is not None:
            with suppress(UnavailableError):
                self._backlog.saw_workspaces(await self._store.count_workspaces())
            await asyncio.sleep(_COUNT_SECONDS)

    async def _follow(self, changes: Changes) -> None:
        """Until the next scan is due: looks at what is announced, and at what has lost its agent's
        process, at once.
        """
        scan_at = time.monotonic() + SCAN_SECONDS
        while (left_seconds := scan_at - time.monotonic()) > 0:
            for workspace_id in await changes.wait(left_seconds):
                workspace = await self._store.get_workspace(workspace_id)
                if workspace is not None and workspace.status in WANTS_POD:
                    self._take_step(workspace)

    def _take_step(self, workspace: Workspace, cancelled: Mapping[str, Task] = _NO_TASKS) -> None:
        """`cancelled` maps workspace ids to current tasks with a recorded cancellation, as of the
        last scan.
        """
        if workspace.id in self._steps:
            return
        step = asyncio.create_task(self._step(workspace, cancelled.get(workspace.id)))
        self._steps[workspace.id] = step
        step.add_done_callback(lambda _: self._steps.pop(workspace.id, None))

    async def _step(self, workspace: Workspace, cancelled: Task | None) -> None:
        try:
            if workspace.host != self._host:
                workspace = await self._place(workspace)
            if workspace.host != self._host:
                return
            if workspace.status is WorkspaceStatus.STOPPING:
                await self._stop(workspace)
            elif workspace.status is WorkspaceStatus.PROVISIONING and not self._pods.was_started(
                workspace
            ):
                await self._start(workspace)
            else:
                await self._check(workspace, cancelled)
        except UnavailableError:
            log.warning("database_unavailable", workspace_id=workspace.id)
        except Exception:
            log.exception("a defect", workspace_id=workspace.id)

    async def _place(self, workspace: Workspace) -> Workspace:
        """Takes over what no host has, or what an earlier run of this host had: its processes end
        before its task does.
        """
        stopped = workspace.host is None or await self._pods.end(workspace, END_GRACE_SECONDS)
        return await self._apply(
            workspace,
            lambda session, now: lifecycle.place(
                session, workspace.epoch, self._host, now, work_stopped=stopped
            ),
        )

    async def _start(self, workspace: Workspace) -> None:
        await self._pods.end(workspace, grace_seconds=0)
        current = await self._store.get_workspace(workspace.id)
        if (
            current is None
            or current.epoch != workspace.epoch
            or current.status is not WorkspaceStatus.PROVISIONING
        ):
            # That took so long that another controller leads by now, and may have started a later
            # pod.
            return
        try:
            await self._pods.start(workspace)
        except OSError as error:
            await self._fail(
                workspace, f"its agent could not be started: {error.strerror or error}"
            )
            return
        log.info("pod_started", workspace_id=workspace.id, epoch=workspace.epoch)
        self._watch(workspace)

    async def _check(self, workspace: Workspace, cancelled: Task | None) -> None:
        """Fails the workspace if its agent is gone, has not renewed its lease, is overdue, or did
        not register in time.
        """
        if not self._pods.is_alive(workspace):
            await self._fail(workspace, self._epitaph(workspace))
        elif self._overdue(workspace, cancelled) is not None:
            await self._end_overdue(workspace)
        else:
            self._watch(workspace)

    async def _end_overdue(self, workspace: Workspace) -> None:
        """Ends the pod of an agent that is overdue, unless the task has ended or the agent has
        recovered since the scan.
        """
        current = await self._store.get_workspace(workspace.id)
        if current is None or current.epoch != workspace.epoch:
            return
        task = (
            await self._store.get_task(current.id, current.current_task_id)
            if current.current_task_id
            else None
        )
        reason = self._overdue(current, task)
        if reason is not None:
            await self._fail(current, reason)

    def _overdue(self, workspace: Workspace, task: Task | None) -> str | None:
        now = self._clock()
        if workspace.lease_expires_at is not None and workspace.lease_expires_at < now:
            return "its agent was not heard of for longer than its lease"
        if (
            workspace.status is WorkspaceStatus.PROVISIONING
            and now > workspace.updated_at + START_LIMIT
        ):
            return f"its agent did not register within {START_LIMIT.seconds} s"
        return self._violation(workspace, task)

    def _violation(self, workspace: Workspace, task: Task | None) -> str | None:
        return self._bounds.violation(workspace, task, self._clock(), self._answering_since)

    def _epitaph(self, workspace: Workspace) -> str:
        if not self._pods.has_files(workspace.id):
            return "its folder was deleted or replaced"
        last_words = self._pods.last_words(workspace.id)
        if workspace.status is WorkspaceStatus.PROVISIONING and last_words:
            return f"its agent ended before it had registered: {last_words[:300]}"
        return "its agent's process ended unexpectedly"

    async def _fail(self, workspace: Workspace, reason: str) -> None:
        """Everything that runs in the pod ends first; only then is the task said to have ended."""
        stopped = await self._pods.end(workspace, grace_seconds=0)
        await self._apply(
            workspace,
            lambda session, now: lifecycle.lose_agent(
                session, workspace.epoch, reason, now, work_stopped=stopped
            ),
        )
        log.warning("agent_lost", workspace_id=workspace.id, epoch=workspace.epoch, reason=reason)

    async def _stop(self, workspace: Workspace) -> None:
        """Ends the pod of a stopping workspace once its task has ended or is overdue."""
        if workspace.current_task_id is not None and self._pods.is_alive(workspace):
            task = await self._store.get_task(workspace.id, workspace.current_task_id)
            if (
                task is not None
                and not task.status.is_terminal
                and not self._violation(workspace, task)
            ):
                return
        stopped = await self._pods.end(workspace, END_GRACE_SECONDS)
        await self._apply(
            workspace,
            lambda session, now: lifecycle.finish_stop(
                session, workspace.epoch, now, work_stopped=stopped
            ),
        )
        log.info("pod_stopped", workspace_id=workspace.id, epoch=workspace.epoch)

    async def _apply(
        self, workspace: Workspace, decide: Callable[[Session, datetime], Change]
    ) -> Workspace:
        change = await self._store.transition(
            workspace.id, lambda session: decide(session, self._clock())
        )
        return change.workspace if change is not None else workspace

    def _watch(self, workspace: Workspace) -> None:
        """A death is seen at once, not at the next look."""
        key = f"{workspace.id}/{workspace.epoch}"
        if key not in self._watched:
            self._watched[key] = asyncio.create_task(self._await_end(key, workspace))

    async def _await_end(self, key: str, workspace: Workspace) -> None:
        await self._pods.ended(workspace)
        del self._watched[key]
        try:
            current = await self._store.get_workspace(workspace.id)
        except UnavailableError:
            # The next scan sees it.
            return
        if current is not None and current.status in WANTS_POD:
            self._take_step(current)
