"""An agent in this process: the real session, loop, committer, heartbeat and lease, put together as
in program.py.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive
from structlog.typing import FilteringBoundLogger

from server.agent.committer import ApplyDirective, Committer
from server.agent.heartbeat import Heartbeat
from server.agent.lease import Lease
from server.agent.loop import Limits, RejectedError, TaskInHand, run_task
from server.agent.session import Session
from server.agent.shutdown import AgentOverError, ExitCode, Shutdown
from server.core.lifecycle import Ending
from server.core.runtime import AgentIdentity, Runtime
from tests.invariants.clock import Clock
from tests.invariants.gates import Gates, Surroundings
from tests.invariants.record import Record
from tests.invariants.runtime_stub import RuntimeStub
from tests.invariants.spy_store import SpyStore
from tests.invariants.trouble import Fault, Link

# A gate is opened, or the call is broken off: no call runs into this.
_NO_LIMITS = Limits(model_timeout_seconds=1e6)

# What agents log is of no interest here.
_log: FilteringBoundLogger = structlog.wrap_logger(
    None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
)


@dataclass(slots=True, kw_only=True)
class Surrounded:
    """What all agents share."""

    runtime: Runtime
    store: SpyStore
    record: Record
    clock: Clock
    # Of each tool that runs in a pod: the epoch and the task.
    tools: set[tuple[int, str]] = field(default_factory=set)


class _Committer(Committer):
    """The real one, with a control plane in this process."""

    def __init__(
        self,
        stub: RuntimeStub,
        lease: Lease,
        shutdown: Shutdown,
        session: Session,
        apply: ApplyDirective,
    ) -> None:
        super().__init__([], "token", lease, shutdown, session.mark, apply, lambda: None, _log)
        self._addresses = ["here"]
        self._stubs = [cast(Any, stub)]


class Agent:
    """The process in the pod of one epoch."""

    def __init__(self, workspace_id: str, epoch: int, shared: Surrounded) -> None:
        self.workspace_id = workspace_id
        self.epoch = epoch
        self.address = f"agent:{epoch}"
        self.link = Link.GOOD
        self.fault: Fault | None = None
        # Whether its lease may be over through no fault of its own.
        self.was_disturbed = False
        # Since when all calls have got through, in seconds of the clock.
        self.mended_at = shared.clock.monotonic()
        # Set unless the process is frozen.
        self.thawed = asyncio.Event()
        self.thawed.set()
        # What came while it was frozen.
        self._backlog: list[Callable[[], object]] = []
        self.is_gone = False
        # The tasks of which it has been told that they are to be cancelled, and the earliest time
        # to break them off.
        self.told: dict[str, float | None] = {}
        self._shared = shared
        self._lease, self.shutdown = Lease(shared.clock.monotonic), Shutdown()
        self.gates = Gates(self._surroundings(), shared.record)
        self.session = Session(
            self._work,
            self.shutdown,
            lambda: self._heartbeat.hurry(),
            _log,
            shared.clock.unix_seconds,
        )
        stub = RuntimeStub(
            AgentIdentity(workspace_id, epoch), self, shared.runtime, shared.store, shared.record
        )
        self._committer = _Committer(stub, self._lease, self.shutdown, self.session, self._apply)
        self._heartbeat = Heartbeat(self._committer, self._lease, self.session)
        self._life = asyncio.create_task(self._live())

    @property
    def is_up(self) -> bool:
        """Whether the process is there, and goes on."""
        return not self.is_gone and not self.shutdown.is_begun

    @property
    def is_frozen(self) -> bool:
        """Whether the process is stopped where it is."""
        return not self.thawed.is_set()

    def hear(self, task_id: str, cancellation: Cancellation) -> None:
        """It has been told of a cancellation."""
        known = self.told.get(task_id)
        if cancellation.HasField("force_at"):
            told = cancellation.force_at.seconds + cancellation.force_at.nanos / 1e9
            known = told if known is None else min(known, told)
        self.told[task_id] = known

    def _apply(self, directive: Directive, sent_at: int, committed_task_id: str = "") -> None:
        """See ApplyDirective. From here on it knows what the database held."""
        self.session.apply(directive, sent_at, committed_task_id)
        if directive.HasField("task") and directive.task.HasField("cancellation"):
            self.hear(directive.task.task_id, directive.task.cancellation)

    def start(self, epoch: int, assignment: Assignment) -> None:
        """As AgentService.StartTask. Raises ValueError in another epoch, WrongTaskError."""
        self._check(epoch)
        if assignment.HasField("cancellation"):
            self.hear(assignment.task_id, assignment.cancellation)
        self.session.start(assignment)

    def cancel(self, epoch: int, task_id: str, cancellation: Cancellation) -> bool:
        """As AgentService.CancelTask. Raises ValueError in another epoch."""
        self._check(epoch)
        self.hear(task_id, cancellation)
        return self.session.cancel(task_id, cancellation)

    def when_thawed(self, deliver: Callable[[], object]) -> None:
        """What comes to a frozen process waits for it."""
        self._backlog.append(deliver)

    def freeze(self) -> None:
        """Stops the process where it is."""
        self.was_disturbed = True
        self.thawed.clear()

    def thaw(self) -> None:
        """Lets it go on."""
        self.mended_at = self._shared.clock.monotonic()
        self.thawed.set()
        backlog, self._backlog = self._backlog, []
        for deliver in backlog:
            deliver()

    def set_link(self, link: Link) -> None:
        """From here on its calls fare like this."""
        if link is not Link.GOOD:
            self.was_disturbed = True
        elif self.link is not Link.GOOD:
            self.mended_at = self._shared.clock.monotonic()
        self.link = link

    async def crash(self) -> None:
        """The process is gone. What a tool had running runs on."""
        self.is_gone = True
        self._life.cancel()
        await asyncio.wait({self._life})

    async def end(self) -> None:
        """As after SIGTERM."""
        self.shutdown.begin(ExitCode.STOPPED, "asked to stop")
        await asyncio.wait({self._life})

    async def _work(self, task: TaskInHand) -> Ending | None:
        if self.fault is Fault.BREAKS:
            raise OSError(28, "No space left on device")
        return await run_task(
            task, self.gates, self.gates, self._committer.commit, _NO_LIMITS, self._heartbeat.hurry
        )

    async def _live(self) -> None:
        background = [self._guarded(self._beat()), self._guarded(self._watch_lease())]
        try:
            await self.shutdown.wait()
        finally:
            await self.session.close()
            for part in background:
                part.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            self.is_gone = True

    async def _beat(self) -> None:
        await self._committer.register(self.address, self.epoch)
        await self._heartbeat.run()

    async def _watch_lease(self) -> None:
        await self._lease.wait_over()
        self.shutdown.begin(ExitCode.LEASE_OVER, "the lease could not be renewed in time")

    def _guarded(self, part: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        async def guard() -> None:
            try:
                await part
            except AgentOverError:
                pass
            except RejectedError as error:
                self._shared.record.defects.append(error)
                raise
            except Exception as error:
                self._shared.record.defects.append(error)
                raise

        return asyncio.create_task(guard())

    def _check(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise ValueError(f"this is the agent of epoch {self.epoch}")

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            epoch=self.epoch,
            task_id=lambda: self.session.task_id,
            was_told=lambda task_id: task_id in self.told,
            may_break_off=self._may_break_off,
            is_gone=lambda: self.is_gone,
            tool_runs=self._tool_runs,
        )

    def _may_break_off(self, task_id: str) -> bool:
        """Only when its time has come, when the agent ends, or when the task is no longer its."""
        store = self._shared.store
        intent = store.intent(task_id)
        is_due = (
            intent is not None
            and intent.force_at is not None
            and intent.force_at <= self._shared.clock()
        )
        is_over = (
            store.workspace is None
            or store.workspace.epoch != self.epoch
            or not store.is_open(task_id)
        )
        return is_due or is_over or self.shutdown.is_begun

    def _tool_runs(self, task_id: str, runs: bool) -> None:
        running = (self.epoch, task_id)
        if runs:
            self._shared.tools.add(running)
        else:
            self._shared.tools.discard(running)
