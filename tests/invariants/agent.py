"""An agent in this process: the real Agent, with a control plane, a model and a tool that the rules
of the state machine drive.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import structlog
from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive
from structlog.typing import FilteringBoundLogger

from server.agent import agent as program
from server.agent.loop import Limits
from server.agent.shutdown import ExitCode
from server.core.runtime import AgentIdentity, Runtime
from tests.invariants.clock import Clock
from tests.invariants.gates import Gates, Surroundings
from tests.invariants.record import Record
from tests.invariants.runtime_stub import RuntimeStub
from tests.invariants.spy_store import SpyStore
from tests.invariants.trouble import Fault, Link

# A gate is opened, or the call is broken off: no call runs into this.
_NO_LIMITS = Limits(model_timeout_seconds=1e6)


def _defects_log(record: Record) -> FilteringBoundLogger:
    """A log that only records the defects of the agent."""

    def note(_: object, __: str, line: MutableMapping[str, Any]) -> NoReturn:
        if line["event"] == "agent_crashed":
            error = sys.exception()
            assert error is not None
            record.defects.append(error)
        raise structlog.DropEvent

    log: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[note], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )
    return log


@dataclass(slots=True, kw_only=True)
class Surrounded:
    """What all agents share."""

    runtime: Runtime
    store: SpyStore
    record: Record
    clock: Clock
    # Of each tool that runs in a pod: the epoch and the task.
    tools: set[tuple[int, str]] = field(default_factory=set)


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
        self.gone = asyncio.Event()
        # The tasks of which it has been told that they are to be cancelled, and the earliest time
        # to break them off.
        self.told: dict[str, float | None] = {}
        self._shared = shared
        self.gates = Gates(self._surroundings(), shared.record)
        stub = RuntimeStub(
            AgentIdentity(workspace_id, epoch), self, shared.runtime, shared.store, shared.record
        )
        self._program = program.Agent(
            {self.address: cast("Any", stub)},
            "token",
            self.gates,
            self.gates,
            _NO_LIMITS,
            _defects_log(shared.record),
            monotonic=shared.clock.monotonic,
            wall_clock=shared.clock.unix_seconds,
        )
        self.shutdown, self.session = self._program.shutdown, self._program.session
        self._life = asyncio.create_task(self._live())

    @property
    def is_up(self) -> bool:
        """Whether the process is there, and goes on."""
        return not self.is_gone and not self.shutdown.is_begun

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self.gone.is_set()

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

    def hear_directive(self, directive: Directive) -> None:
        """The agent receives a directive."""
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
        self.gone.set()
        self._life.cancel()
        await asyncio.wait({self._life})

    async def end(self) -> None:
        """As after SIGTERM."""
        self.shutdown.begin(ExitCode.STOPPED, "asked to stop")
        await asyncio.wait({self._life})

    async def _live(self) -> None:
        try:
            await self._program.run(self.address)
        finally:
            self.gone.set()
            if self.shutdown.code is ExitCode.REJECTED:
                self._shared.record.defects.append(AssertionError(self.shutdown.reason))

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
