"""Runs the real Agent in this process.

The rules of the state machine (machine.py) drive its control plane, its model and its tool.
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

from evershell.agents import agent as program
from evershell.agents.runtime_client import ControlPlaneClock, RuntimeCredential
from evershell.agents.shutdown import ExitCode
from evershell.agents.step import Limits
from evershell.core.runtime import AgentIdentity, Runtime
from evershell.pod.tokens import SECRET_BYTES
from tests.faults.invariants.clock import Clock
from tests.faults.invariants.gates import Gates, Surroundings
from tests.faults.invariants.record import Record
from tests.faults.invariants.runtime_stub import RuntimeStub
from tests.faults.invariants.spy_store import SpyStore
from tests.faults.invariants.trouble import Fault, Link

# The rules of the state machine end or interrupt every call, so no call reaches these limits.
_NO_LIMITS = Limits(model_timeout_seconds=1e6, tool_timeout_seconds=1e6)


def _defects_log(record: Record) -> FilteringBoundLogger:
    """Returns a logger that drops all lines, and records the errors in `agent_crashed` lines."""

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
    """The parts that all agents share."""

    runtime: Runtime
    store: SpyStore
    record: Record
    clock: Clock
    # The epoch and the task id of each running tool.
    tools: set[tuple[int, str]] = field(default_factory=set)


class Agent:
    """The agent's process in the pod of one epoch."""

    def __init__(self, workspace_id: str, epoch: int, shared: Surrounded) -> None:
        self.workspace_id = workspace_id
        self.epoch = epoch
        self.address = f"127.0.0.1:{epoch}"
        self.link = Link.GOOD
        self.fault: Fault | None = None
        # Whether a fault outside the agent may have let the agent's lease expire.
        self.was_disturbed = False
        # When the process was last thawed or its link last repaired, in seconds of the monotonic
        # clock.
        self.mended_at = shared.clock.monotonic()
        # Set unless the process is frozen.
        self.thawed = asyncio.Event()
        self.thawed.set()
        # Calls that arrived while the process was frozen.
        self._backlog: list[Callable[[], object]] = []
        self.gone = asyncio.Event()
        # For each task whose cancellation the agent has received: the earliest force deadline in
        # seconds since 1970, or None without one.
        self.known_cancellations: dict[str, float | None] = {}
        self._shared = shared
        self.gates = Gates(self._surroundings(), shared.record)
        stub = RuntimeStub(
            AgentIdentity(workspace_id, epoch), self, shared.runtime, shared.store, shared.record
        )
        clock = ControlPlaneClock(shared.clock.monotonic, shared.clock.unix_seconds)
        self._program = program.Agent(
            {self.address: cast("Any", stub)},
            RuntimeCredential(workspace_id, epoch, "00" * SECRET_BYTES, clock),
            self.gates.agent,
            _NO_LIMITS,
            _defects_log(shared.record),
            monotonic=shared.clock.monotonic,
        )
        self.shutdown, self.session = self._program.shutdown, self._program.session
        self._life = asyncio.create_task(self._live())

    @property
    def is_up(self) -> bool:
        """Whether the process runs and is not shutting down."""
        return not self.is_gone and not self.shutdown.is_begun

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self.gone.is_set()

    @property
    def is_frozen(self) -> bool:
        """Whether the process is stopped, as after SIGSTOP."""
        return not self.thawed.is_set()

    def note_cancellation(self, task_id: str, cancellation: Cancellation) -> None:
        """Notes that the agent receives the cancellation of a task."""
        known = self.known_cancellations.get(task_id)
        if cancellation.HasField("force_after_ms"):
            force_at = self._shared.clock.unix_seconds() + cancellation.force_after_ms / 1000
            known = force_at if known is None else min(known, force_at)
        self.known_cancellations[task_id] = known

    def note_directive(self, directive: Directive) -> None:
        """Notes the cancellation in a directive that the agent receives, if there is one."""
        if directive.HasField("task") and directive.task.HasField("cancellation"):
            self.note_cancellation(directive.task.task_id, directive.task.cancellation)

    def start(self, epoch: int, assignment: Assignment) -> bool:
        """Handles the signal to start a task.

        Raises ValueError if the signal is for another epoch.
        """
        self._check(epoch)
        if assignment.HasField("cancellation"):
            self.note_cancellation(assignment.task_id, assignment.cancellation)
        return self.session.start(assignment)

    def cancel(self, epoch: int, task_id: str, cancellation: Cancellation) -> bool:
        """Handles the signal to cancel a task.

        Raises ValueError if the signal is for another epoch.
        """
        self._check(epoch)
        self.note_cancellation(task_id, cancellation)
        return self.session.cancel(task_id, cancellation)

    def when_thawed(self, deliver: Callable[[], object]) -> None:
        """Keeps a call to this frozen process, and delivers it once the process is thawed."""
        self._backlog.append(deliver)

    def freeze(self) -> None:
        """Stops the process, as SIGSTOP does."""
        self.was_disturbed = True
        self.thawed.clear()

    def thaw(self) -> None:
        """Lets the process continue, and delivers the calls that have waited."""
        self.mended_at = self._shared.clock.monotonic()
        self.thawed.set()
        backlog, self._backlog = self._backlog, []
        for deliver in backlog:
            deliver()

    def set_link(self, link: Link) -> None:
        """Sets how the agent's calls to the control plane fail from now on."""
        if link is not Link.GOOD:
            self.was_disturbed = True
        elif self.link is not Link.GOOD:
            self.mended_at = self._shared.clock.monotonic()
        self.link = link

    async def crash(self) -> None:
        """Kills the process. The processes of its tools keep running."""
        self.gone.set()
        self._life.cancel()
        await asyncio.wait({self._life})

    async def end(self) -> None:
        """Ends the process, as SIGTERM does."""
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
            was_cancelled=lambda task_id: task_id in self.known_cancellations,
            may_interrupt=self._may_interrupt,
            is_gone=lambda: self.is_gone,
            tool_runs=self._tool_runs,
        )

    def _may_interrupt(self, task_id: str) -> bool:
        """Whether the agent may interrupt the task's calls.

        It may if the force deadline has passed, the agent is ending, or the task has ended or
        belongs to a later epoch.
        """
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
