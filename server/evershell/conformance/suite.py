"""The cases of `evershell agent check`, in the order in which they run.

The suite learns from the agent's reports that a moment is reached: from a heartbeat with a phase,
or from a commit. If the agent does not reach the moment of a case, the case does not count as
passed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc
import grpc.aio
import psutil
from evershell.agent.v1.agent_service_pb2 import Signal
from evershell.agent.v1.agent_service_pb2_grpc import AgentServiceStub

from evershell.conformance.agent_process import AgentProcess
from evershell.conformance.control_plane import LEASE_SECONDS, WORKSPACE_ID
from evershell.conformance.moments import Moment, Run, SuiteControlPlane
from evershell.conformance.record import (
    FailedError,
    NotReachedError,
    check_end,
    check_whole,
    has_to_end,
    missing,
    tokens,
    tool_calls,
    why_missed,
)
from evershell.core.bounds import FORCE_MARGIN
from evershell.core.task import TaskStatus
from evershell.pod.last_line import reason_in
from evershell.pod.signal_stream import NotAcknowledgedError

# The length of the lease in the case that lets the lease expire. An agent has enough time to end.
_SHORT_LEASE_SECONDS = 6.0
# How many calls the simulated outage of the database refuses before it ends.
_OUTAGE_CALLS = 3
_SETTLE_SECONDS = 5.0
# The interval between checks for the end of the process, which no call reports.
_POLL_SECONDS = 0.1


class Verdict(StrEnum):
    """The result of a case."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Row:
    """A case and its result."""

    case: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user specifies about the agent."""

    # Describes a task with at least two iterations, each with a model call and a tool call that
    # take some time.
    description: str
    # Describes a task in which two tools run at the same time.
    parallel: str = ""
    # Describes a task in which the model raises an exception.
    model_error: str = ""
    # Describes a task in which a tool raises an exception.
    tool_error: str = ""
    # Describes a task in which the agent's own code raises an exception.
    loop_error: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    # The time limit of a task.
    task_seconds: float = 60.0
    # How long the agent may take to register.
    start_seconds: float = 120.0
    # How long after its force deadline a task may take to end.
    force_seconds: float = FORCE_MARGIN.total_seconds()
    model_timeout_seconds: float = 120.0
    tool_timeout_seconds: float = 600.0


class Suite:
    """Runs the cases on one agent, which is started again only if a case ends its process."""

    def __init__(self, command: Sequence[str], options: Options, folder: Path) -> None:
        """`command` starts the agent.

        `folder` is empty at first, and receives the agent's files and its log.
        """
        self._command = command
        self._options = options
        self._files = folder / "files"
        self._files.mkdir()
        self._plane = SuiteControlPlane()
        self._agent: AgentProcess | None = None
        self._has_started = False
        # The run without a cancellation, with which the other runs are compared.
        self._whole = Run(options.description)
        # What the records of the other runs lack, compared with `_whole`.
        self._lost: list[str] = []
        # The cases in which the agent committed something after the end of its task.
        self._repeats: list[str] = []
        self._ends = 0

    async def rows(self) -> AsyncIterator[Row]:
        """Yields each row when its case has run.

        If the agent does not start, yields only the first row.
        """
        await self._plane.serve_all()
        try:
            for name, case in self._cases():
                yield await self._row(name, case)
                if not self._has_started:
                    return
        finally:
            if self._agent is not None:
                await self._agent.kill()
            await self._plane.stop()

    def _cases(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        errors = {
            "model": ("--model-error", self._options.model_error),
            "tool": ("--tool-error", self._options.tool_error),
            "loop": ("--loop-error", self._options.loop_error),
        }
        return [
            ("a task that is not cancelled", self._completes),
            *((f"cancelled {m}", partial(self._cancelled, m, force=False)) for m in Moment),
            *((f"forced {m}", partial(self._cancelled, m, force=True)) for m in Moment),
            ("the next task in the same process", self._next_task),
            *(
                (f"an exception in the {where}", partial(self._raises, where, *given))
                for where, given in errors.items()
            ),
            ("a lost worker", self._lost_worker),
            ("an unavailable database", self._unavailable_database),
            ("signals without a valid token", self._foreign_signals),
            ("an expired lease", self._expired_lease),
            ("the end of the pod", self._end_of_pod),
            ("usage and partial output", self._is_recorded),
            ("exactly one end", self._one_end),
        ]

    async def _row(self, name: str, case: Callable[[], Awaitable[None]]) -> Row:
        self._plane.breaches.clear()
        row = Row(name, Verdict.PASSED)
        try:
            await case()
        except FailedError as failure:
            row = Row(name, Verdict.FAILED, str(failure))
        except NotReachedError as reason:
            row = Row(name, Verdict.NOT_REACHED, str(reason))
        if self._plane.breaches and row.verdict is not Verdict.FAILED:
            row = Row(name, Verdict.FAILED, self._plane.breaches[0])
        if row.verdict is Verdict.FAILED:
            await self._discard_agent()
        self._note_run(name)
        return row

    # The agent

    async def _running(self) -> AgentProcess:
        """The idle agent. Starts one if none runs. Raises FailedError if one does not register."""
        if self._agent is not None and self._agent.exit_code is None:
            return self._agent
        options = self._options
        await self._plane.begin_epoch()
        spec = self._plane.spec(
            str(self._files),
            keys=dict(options.keys),
            model_timeout_seconds=options.model_timeout_seconds,
            tool_timeout_seconds=options.tool_timeout_seconds,
        )
        try:
            agent = await AgentProcess.start(self._command, spec, self._files)
        except OSError as error:
            raise FailedError(f"the agent cannot be started: {error}") from error
        self._agent = agent
        plane = self._plane
        if not await self._wait(agent, lambda: plane.address, options.start_seconds):
            lines = agent.last_lines().splitlines()
            reason = reason_in(lines[-1]) if lines else "no log"
            raise FailedError(f"the agent has not registered: {reason}")
        self._has_started = True
        return agent

    async def _wait(
        self, agent: AgentProcess, condition: Callable[[], object], seconds: float
    ) -> bool:
        """Waits until `condition` is true. Returns False if time runs out or the process ends."""
        limit = time.monotonic() + seconds
        while not await self._plane.until(condition, _POLL_SECONDS):
            if agent.exit_code is not None or time.monotonic() > limit:
                return False
        return True

    async def _discard_agent(self) -> None:
        if self._agent is not None:
            await self._agent.kill()
            self._agent = None

    async def _do(self, run: Run) -> tuple[AgentProcess, dict[int, psutil.Process]]:
        """Runs a task to its end.

        Returns the agent, and the processes that it had started before the task. Raises FailedError
        if the agent's process ends, or if the task does not end in time. If the task need not have
        ended yet, and the run without a cancellation has not completed either, raises
        NotReachedError instead.
        """
        agent = await self._running()
        before = agent.started()
        await self._plane.submit(run)
        limit = time.monotonic() + self._options.task_seconds
        plane = self._plane
        # Polls often: if the task is cancelled with force during the wait, it gets a deadline.
        while not await plane.until(lambda: run.ended, _POLL_SECONDS):
            now = time.monotonic()
            if agent.exit_code is not None:
                raise FailedError(f"the agent ended during the task, with {agent.exit_code}")
            is_forced = run.force and run.cancelled_after is not None
            if is_forced and now > run.cancelled_at + self._options.force_seconds:
                seconds = self._options.force_seconds
                await self._end_pod(f"the agent did not end within {seconds:g} s of its deadline")
            if now > max(limit, run.cancelled_at + self._options.task_seconds):
                await self._end_late(run)
        return agent, before

    async def _end_late(self, run: Run) -> NoReturn:
        """Ends the pod of a task that has reached the time limit. Raises as `_do` describes."""
        seconds = f"within {self._options.task_seconds:g} s"
        try:
            await self._end_pod(f"the task did not end {seconds}")
        except FailedError:
            if has_to_end(run) or self._has_completed:
                raise
            hint = "use another --task, or --task-seconds"
            raise NotReachedError(f"the task does not end {seconds}; {hint}") from None

    @property
    def _has_completed(self) -> bool:
        """Whether the task has completed in the run without a cancellation."""
        ended = self._whole.ended
        return ended is not None and ended.status is TaskStatus.COMPLETED

    async def _end_pod(self, reason: str) -> NoReturn:
        """Ends the pod and the task as the fleet controller does. Always raises FailedError."""
        await self._discard_agent()
        await self._plane.end_open_task(reason)
        ended = self._plane.run.ended
        status = ended.status if ended is not None else "open"
        raise FailedError(f"{reason}; the control plane has ended its pod, and the task {status}")

    async def _check_idle(self, agent: AgentProcess) -> None:
        """Raises FailedError unless the agent waits for the next task."""
        try:
            limit = time.monotonic() + _SETTLE_SECONDS
            while task_id := (await self._plane.signal(Signal())).task_id:
                if time.monotonic() > limit:
                    raise FailedError(f"the agent still works on {task_id} after its end")
        except NotAcknowledgedError as error:
            # The exit code of a process that has just ended is known only a moment later.
            await agent.wait(_SETTLE_SECONDS)
            what = str(error) if agent.exit_code is None else f"exit code {agent.exit_code}"
            raise FailedError(f"the agent does not answer after the task: {what}") from None

    # The cases

    async def _completes(self) -> None:
        run = self._whole
        agent, _ = await self._do(run)
        assert run.ended is not None
        if run.ended.status is not TaskStatus.COMPLETED:
            raise FailedError(f"the task ended {run.ended.status}: {run.ended.reason}")
        await self._check_idle(agent)

    async def _cancelled(self, moment: Moment, *, force: bool) -> None:
        options = self._options
        description = options.description
        if moment is Moment.TWO_TOOLS:
            description = options.parallel or description
        run = Run(description, moment, force)
        agent, before = await self._do(run)
        assert run.ended is not None
        if run.cancelled_after is None:
            raise NotReachedError(why_missed(moment, run))
        check_end(run)
        if moment is Moment.TWO_TOOLS and len(tool_calls(run.iterations[-1])) < 2:
            raise NotReachedError("the iteration has one tool call; see --parallel")
        if force and (left := await agent.left(before, _SETTLE_SECONDS)):
            raise FailedError(f"still runs after the end of the task: {left}")
        await self._check_idle(agent)
        agent.cancelled_tasks += 1

    async def _next_task(self) -> None:
        agent = await self._running()
        if not agent.cancelled_tasks:
            raise NotReachedError("no task was cancelled in this process")
        run = Run(self._options.description)
        same, _ = await self._do(run)
        assert run.ended is not None
        if same is not agent or run.ended.status is not TaskStatus.COMPLETED:
            raise FailedError(f"the task ended {run.ended.status}: {run.ended.reason}")
        await self._check_idle(agent)

    async def _raises(self, where: str, option: str, description: str) -> None:
        if not description:
            raise NotReachedError(f"{option} is not set")
        run = Run(description)
        agent, _ = await self._do(run)
        assert run.ended is not None
        if run.ended.status is TaskStatus.COMPLETED and where == "loop":
            raise NotReachedError("the task completed")
        if run.ended.status is TaskStatus.COMPLETED and where == "model":
            raise NotReachedError("the task completed")
        # For a tool, a completed task is fine: most frameworks report the failure to the model and
        # continue.
        if run.ended.status is TaskStatus.FAILED and not run.ended.reason:
            raise FailedError("the task ended failed, without a reason")
        await self._check_idle(agent)

    async def _lost_worker(self) -> None:
        """Stops each of the two workers in turn, because the agent may use either one."""
        await self._running()
        await self._plane.workers[0].stop()
        try:
            run = Run(self._options.description)
            await self._do(run)
            check_whole(run)
            await self._plane.workers[0].start()
            await self._plane.workers[1].stop()
            run = Run(self._options.description)
            await self._do(run)
            check_whole(run)
        finally:
            for worker in self._plane.workers:
                await worker.stop()
                await worker.start()

    async def _unavailable_database(self) -> None:
        """The database fails during the commit of an iteration.

        The commit takes effect, but the agent gets an error for it and for the following calls.
        """
        plane, run = self._plane, Run(self._options.description)
        agent = await self._running()
        plane.has_outage_after_iteration, plane.refused_calls = True, 0
        seconds = self._options.task_seconds
        try:
            await plane.submit(run)
            await self._wait(
                agent,
                lambda: (
                    plane.refused_calls >= _OUTAGE_CALLS
                    or (run.ended is not None and plane.outage is None)
                ),
                seconds,
            )
            plane.outage = None
            await self._wait(agent, lambda: run.ended, seconds)
        finally:
            plane.has_outage_after_iteration, plane.outage = False, None
        if run.ended is None:
            await self._end_late(run)
        if not plane.refused_calls:
            raise NotReachedError("the task has no iteration")
        check_whole(run)
        await self._check_idle(agent)
        # The agent may repeat the commit of the end if the commit was not acknowledged.
        run.repeats = 0

    async def _expired_lease(self) -> None:
        """Checks that the agent, with all that it has started, ends before its lease is over."""
        plane = self._plane
        await self._discard_agent()
        plane.lease_seconds = _SHORT_LEASE_SECONDS
        try:
            agent = await self._running()
            await plane.submit(Run(self._options.description))
            plane.outage = grpc.StatusCode.UNAVAILABLE
            left_seconds = await plane.store.lease_seconds_left(WORKSPACE_ID)
            assert left_seconds is not None
            if not await agent.wait(left_seconds):
                raise FailedError(
                    f"the agent still ran after its lease of {_SHORT_LEASE_SECONDS:g} s"
                )
            if left := await agent.left({}, 0):
                raise FailedError(f"still runs after the lease: {left}")
        finally:
            plane.outage = None
            plane.lease_seconds = LEASE_SECONDS
            await self._discard_agent()
            await plane.end_open_task("the lease is over")

    async def _end_of_pod(self) -> None:
        agent = await self._running()
        agent_ended = await agent.end(_SETTLE_SECONDS)
        if not agent_ended:
            raise FailedError(f"the agent did not end within {_SETTLE_SECONDS:g} s of SIGTERM")

    # What all cases together show

    def _note_run(self, case: str) -> None:
        run = self._plane.run
        self._plane.run = Run("")
        if run.ended is None:
            return
        self._ends += 1
        if run.repeats:
            self._repeats.append(case)
        if run.description != self._whole.description:
            return
        for whole, iteration in zip(self._whole.iterations, run.iterations, strict=False):
            if lost := missing(whole, iteration):
                self._lost.append(f"{lost} of iteration {iteration['number']} in: {case}")

    async def _is_recorded(self) -> None:
        if self._lost:
            raise FailedError(self._lost[0])
        if not any(tokens(each) for each in self._whole.iterations):
            raise NotReachedError("the agent reports no tokens")

    async def _foreign_signals(self) -> None:
        await self._running()
        valid, foreign = self._plane.signal_token, "0" * 64
        # A write while the stream ends could hide the status of the stream, so nothing is written
        # to the first stream.
        for opened_with, sent in ((foreign, ()), (valid, (Signal(id=1, token=foreign),))):
            code = await self._refusal(opened_with, *sent)
            if code is not grpc.StatusCode.UNAUTHENTICATED:
                raise FailedError(f"the agent ends the stream of a foreign signal with {code}")

    async def _refusal(self, opened_with: str, *sent: Signal) -> grpc.StatusCode:
        """The status with which the agent ends a stream that is opened with this token."""
        async with self._plane.open_channel() as channel:
            call = AgentServiceStub(channel).Signals(
                metadata=(("authorization", f"Bearer {opened_with}"),)
            )
            try:
                async with asyncio.timeout(_SETTLE_SECONDS):
                    for signal in sent:
                        await call.write(signal)
                    await call.read()
            except TimeoutError:
                raise FailedError("the agent does not refuse a foreign signal") from None
            except grpc.aio.AioRpcError as refusal:
                return refusal.code()
        raise FailedError("the agent acknowledges a foreign signal")

    async def _one_end(self) -> None:
        if self._repeats:
            raise FailedError(f"the agent committed after the end in: {self._repeats[0]}")
        if not self._ends:
            raise NotReachedError("no task has ended")
