"""A controller's surroundings: pods and changes that do as they are told, and the store in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from server.core import task_lifecycle
from server.core.bounds import Bounds
from server.core.task import Task
from server.core.workspace import Workspace, WorkspaceStatus
from server.fleet.controller import Controller
from server.telemetry.metrics import Backlog
from tests.support.waiting import settle
from tests.support.world import NOW, World, intent

RUN_ID = "run_1"
BOUNDS = Bounds(model_timeout_seconds=5.0, tool_timeout_seconds=10.0, lease_seconds=6.0)


@dataclass
class FakePods:
    """Implements server.fleet.pods.Pods: notes what was done, in order."""

    done: list[str] = field(default_factory=list)
    # Of each pod that was started: the workspace, the epoch and the run.
    started: set[tuple[str, int, str | None]] = field(default_factory=set)
    alive: dict[tuple[str, int], asyncio.Event] = field(default_factory=dict)
    start_error: OSError | None = None
    ends_all: bool = True
    words: str = ""
    files_are_there: bool = True
    # Called in the middle of each end.
    on_end: Callable[[], object] = lambda: None

    def add(self, workspace: Workspace) -> None:
        self._note_start(workspace)
        self.alive[workspace.id, workspace.epoch] = asyncio.Event()

    def kill(self, workspace: Workspace) -> None:
        self.alive.pop((workspace.id, workspace.epoch)).set()

    def was_started(self, workspace: Workspace) -> bool:
        return (workspace.id, workspace.epoch, workspace.run_id) in self.started

    async def start(self, workspace: Workspace) -> None:
        self.done.append(f"start {workspace.epoch}")
        self._note_start(workspace)
        if self.start_error is not None:
            raise self.start_error
        self.add(workspace)

    async def wait_exit(self, workspace: Workspace) -> None:
        gone = self.alive.get((workspace.id, workspace.epoch))
        if gone is not None:
            await gone.wait()

    def is_alive(self, workspace: Workspace) -> bool:
        return (workspace.id, workspace.epoch) in self.alive and self.files_are_there

    def has_files(self, workspace_id: str) -> bool:
        return self.files_are_there and any(each[0] == workspace_id for each in self.started)

    def log_tail(self, workspace_id: str) -> str:
        return self.words

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        self.done.append(f"end {grace_seconds:g}")
        self.on_end()
        await asyncio.sleep(0)
        for key in [
            key for key in self.alive if key[0] == workspace.id and key[1] <= workspace.epoch
        ]:
            self.alive.pop(key).set()
        return self.ends_all

    def _note_start(self, workspace: Workspace) -> None:
        self.started.add((workspace.id, workspace.epoch, workspace.run_id))


class FakeChanges:
    """Implements server.fleet.controller.Changes: nothing, until something is announced."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[set[str]] = asyncio.Queue()

    async def wait(self, timeout_seconds: float) -> set[str]:
        return await self.queue.get()


@dataclass
class Fleet:
    world: World = field(default_factory=World)
    pods: FakePods = field(default_factory=FakePods)
    changes: FakeChanges = field(default_factory=FakeChanges)
    backlog: Backlog | None = None
    answering_since: datetime = NOW - timedelta(hours=1)

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
        """Leads until the block is left."""
        controller = Controller(
            self.world.store,
            self.pods,
            self.world.agents,
            BOUNDS,
            RUN_ID,
            self.world.clock,
            self.answering_since,
            self.backlog,
        )
        leading = asyncio.create_task(controller.run(self.changes))
        try:
            await settle()
            yield
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def look(self) -> None:
        """One scan, and all that follows from it at once."""
        async with self.running():
            pass
