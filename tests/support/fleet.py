"""A controller with a store in memory and with fake pods, changes and agents."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from evershell.core import task_lifecycle
from evershell.core.bounds import Bounds
from evershell.core.ports import UNDELIVERED
from evershell.core.task import Task
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.fleet.controller import Controller
from evershell.fleet.due import SCAN_SECONDS
from evershell.fleet.parts import Parts
from evershell.telemetry.backlog import Backlog
from tests.support.waiting import settle
from tests.support.world import NOW, World, intent

RUN_ID = "run_1"
BOUNDS = Bounds(model_timeout_seconds=5.0, tool_timeout_seconds=10.0, lease_seconds=6.0)


@dataclass
class FakePods:
    """Implements fleet.pods.Pods: records its calls, and answers as the test has set."""

    # The calls, in order: "start <epoch>", "end <grace in seconds>" and "remove".
    calls: list[str] = field(default_factory=list)
    # The workspace id, epoch and run id of each pod that was started or failed to start.
    started: set[tuple[str, int, str | None]] = field(default_factory=set)
    # The running pods, by workspace id and epoch. The event is set when the pod exits.
    alive: dict[tuple[str, int], asyncio.Event] = field(default_factory=dict)
    # The ids of the workspaces for which `has_never_run` returns True.
    never_run: set[str] = field(default_factory=set)
    start_error: OSError | None = None
    # The result of `end`.
    ends_all: bool = True
    # The result of `remove`.
    removes_all: bool = True
    last_log_line: str = ""
    files_exist: bool = True
    explanation: str = ""
    syncs: int = 0
    # `end` calls this function before the pods exit.
    on_end: Callable[[], object] = lambda: None

    def add(self, workspace: Workspace) -> None:
        self._record_start(workspace)
        self.alive[workspace.id, workspace.epoch] = asyncio.Event()

    def kill(self, workspace: Workspace) -> None:
        self.alive.pop((workspace.id, workspace.epoch)).set()

    async def sync(self) -> None:
        self.syncs += 1

    def was_started(self, workspace: Workspace) -> bool:
        return (workspace.id, workspace.epoch, workspace.run_id) in self.started

    def has_never_run(self, workspace_id: str) -> bool:
        return workspace_id in self.never_run

    async def start(self, workspace: Workspace) -> None:
        self.calls.append(f"start {workspace.epoch}")
        self._record_start(workspace)
        if self.start_error is not None:
            raise self.start_error
        self.add(workspace)

    async def wait_exit(self, workspace: Workspace) -> None:
        exited = self.alive.get((workspace.id, workspace.epoch))
        if exited is not None:
            await exited.wait()

    def is_alive(self, workspace: Workspace) -> bool:
        return (workspace.id, workspace.epoch) in self.alive and self.files_exist

    def has_files(self, workspace_id: str) -> bool:
        return self.files_exist and any(each[0] == workspace_id for each in self.started)

    def log_tail(self, workspace_id: str) -> str:
        return self.last_log_line

    def explain(self, workspace: Workspace) -> str:
        return self.explanation if self.files_exist else "its folder was deleted or replaced"

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        self.calls.append(f"end {grace_seconds:g}")
        self.on_end()
        await asyncio.sleep(0)
        for key in [
            key for key in self.alive if key[0] == workspace.id and key[1] <= workspace.epoch
        ]:
            self.alive.pop(key).set()
        return self.ends_all

    async def remove(self, workspace_id: str) -> bool:
        self.calls.append("remove")
        await asyncio.sleep(0)
        if self.removes_all:
            self.started = {each for each in self.started if each[0] != workspace_id}
        return self.removes_all

    def _record_start(self, workspace: Workspace) -> None:
        self.started.add((workspace.id, workspace.epoch, workspace.run_id))


class FakeChanges:
    """Implements fleet.pods.Changes: returns what a test has put into the queue."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[set[str]] = asyncio.Queue()

    async def wait(self, timeout_seconds: float) -> set[str]:
        return await self.queue.get()


@dataclass
class Fleet:
    """What a controller needs, and shortcuts to set up workspaces with pods."""

    world: World = field(default_factory=World)
    pods: FakePods = field(default_factory=FakePods)
    changes: FakeChanges = field(default_factory=FakeChanges)
    backlog: Backlog | None = None
    last_outage_at: datetime = NOW - timedelta(hours=1)
    # Whether the controller is still the leader.
    leads: bool = True
    # How long a workspace must be idle before it is suspended; None if it never is.
    suspend_after: timedelta | None = None
    # The number of calls to `next_scan`. Each call moves the clock further ahead.
    scans: int = 0

    def __post_init__(self) -> None:
        publish = self.world.store.publish

        def publish_undelivered(workspace_id: str, *, watched: bool, reconcile: bool) -> None:
            publish(workspace_id, watched=watched, reconcile=reconcile)
            if workspace_id == UNDELIVERED:
                self.changes.queue.put_nowait({workspace_id})

        self.world.store.publish = publish_undelivered

    async def add(
        self,
        status: WorkspaceStatus,
        *,
        run_id: str | None = RUN_ID,
        pod: bool = True,
        **fields: Any,
    ) -> Workspace:
        added = await self.world.add(status, run_id=run_id, **fields)
        if pod:
            self.pods.add(added)
        return added

    async def add_busy(self, *, cancelled: bool = False, **fields: Any) -> tuple[Workspace, Task]:
        idle = await self.add(WorkspaceStatus.IDLE, **fields)
        running = await self.world.run(idle)
        if cancelled:
            await self.world.change(
                idle.id, lambda locked: task_lifecycle.request_cancel(locked, intent())
            )
        return await self.world.workspace(idle.id), running

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the controller as the leader until the block ends."""
        parts = Parts(
            store=self.world.store,
            pods=self.pods,
            agents=self.world.agents,
            clock=self.world.clock,
            bounds=BOUNDS,
            run_id=RUN_ID,
            suspend_after=self.suspend_after,
            backlog=self.backlog,
            leads=lambda: self.leads,
        )
        leading = asyncio.create_task(Controller(parts, self.last_outage_at).run(self.changes))
        try:
            await settle()
            yield
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def next_scan(self) -> None:
        """Makes the running controller scan again. Waits until all steps of that scan are done."""
        self.scans += 1
        now = time.monotonic() + self.scans * SCAN_SECONDS
        with patch.object(time, "monotonic", return_value=now):
            self.changes.queue.put_nowait(set())
            await settle()

    async def scan(self) -> None:
        """Runs the controller for one scan and the steps that follow immediately."""
        async with self.running():
            pass
