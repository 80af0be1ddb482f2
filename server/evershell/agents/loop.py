"""The task as an agent's function sees it, and the code that runs the function."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from evershell.agents.active_task import ActiveTask, TaskFailed
from evershell.agents.descendants import Descendants
from evershell.agents.step import (
    Calls,
    Limits,
    Step,
    cancel,
    description_of,
    storable_text,
)
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    IterationReported,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)

# How long the function may run after its loop has ended.
_AFTER_SECONDS = 10.0
# How long an interrupted function may take to end its processes itself.
_GRACE_SECONDS = 0.5
# How long to wait for the end of a killed process, which may hang in the kernel.
_KILLED_SECONDS = 1.0

_log = logging.getLogger(__name__)

AgentFunction = Callable[["Task"], Awaitable[object]]


class RejectedError(Exception):
    """The control plane refused a call, and a retry would not help. The text says why."""


class Commit(Protocol):
    """Commits events of a task."""

    async def __call__(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        """Returns when the commit is acknowledged: True if the task is still this agent's.

        Raises RejectedError.
        """


async def run_task(
    function: AgentFunction,
    task: ActiveTask,
    commit: Commit,
    limits: Limits,
    phase_changed: Callable[[], None] = lambda: None,
) -> TaskEnded | None:
    """Works on a task until its end is committed, and returns the end that it proposed.

    Returns None if the task is no longer this agent's. The rules:

    1. Nothing runs before `task_started` is committed.
    2. The cancel flag is checked before every iteration, including the first. Once it is set, the
       loop of the function ends: no further iteration starts. The current one ends normally, and
       its event precedes the end of the task. A cancellation before the first iteration means zero
       iterations.
    3. An iteration is one turn of the function's loop. It is committed as one event with the
       results of its calls, so no tool call is committed without its result. Iterations are
       numbered from 1 without gaps. If the function raises an exception after a failed call, the
       open iteration is not committed. Before tool calls begin, they are reported, together with
       what the iteration has used so far.
    4. The task ends when the function returns: `cancelled` if the flag is set, `failed` if the loop
       asked for more iterations than the task may have, else `completed`. What the function returns
       is the result. An exception ends the task `failed`, with a human-readable reason. No
       exception ends the process.
    5. Except in 6 and 7, the function is interrupted only when the flag's `force_at` has passed, or
       when it runs on for too long after its loop. It gets a CancelledError, and every process that
       the task has started is ended. If this interrupts an iteration, the iteration is committed
       with the results received so far, and the end is forced; otherwise, the end is not forced.
       Nothing is committed before everything has ended.
    6. The end is the last event of the task. It is committed together with the last iteration. If
       the reply to a commit no longer names the task, the function is interrupted, and nothing more
       is committed.
    7. If this coroutine is cancelled, it first ends the function as in 5, and it commits nothing
       more.
    """
    try:
        if not await commit(task.id, [TaskStarted()]):
            return None
        if task.iterations:
            raise TaskFailed(
                "The agent was restarted during the task, so its memory of the task is lost."
            )
        run = _Run(task, commit, Calls(task, limits, phase_changed))
        events = await run.events(function)
        return await _end(task, commit, *events) if events else None
    except TaskFailed as failure:
        return await _end(task, commit, _failed(str(failure)))
    except RejectedError as error:
        return await _end(task, commit, _failed(f"The agent's work could not be recorded: {error}"))


class Task:
    """A task of a workspace. An agent is a function that works on a task and returns its result."""

    def __init__(self, run: "_Run") -> None:
        self._run = run

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._run.task.id

    @property
    def description(self) -> str:
        """What is to be done."""
        return self._run.task.description

    @property
    def max_iterations(self) -> int:
        """The number of iterations after which the loop ends."""
        return self._run.task.max_iterations

    @property
    def is_cancelled(self) -> bool:
        """Whether the task is cancelled, so that the current iteration is the last one."""
        return self._run.task.cancel.is_requested

    def iterations(self) -> AsyncIterator[Step]:
        """The iterations of the task, until it is cancelled or has used up its iterations.

        A second loop continues where the first one has stopped. Each turn of the loop commits the
        iteration before it. After the loop, the function has 10 s to return. What it returns
        becomes the result of the task, even of a cancelled one.
        """
        return self._run


class _Run(AsyncIterator[Step]):
    """The run of an agent's function on a task. Iterates over the steps of the function's loop."""

    def __init__(self, task: ActiveTask, commit: Commit, calls: Calls) -> None:
        self.task = task
        self._commit = commit
        self._calls = calls
        self._descendants = Descendants()
        # The current iteration.
        self._step: Step | None = None
        # The event of the previous iteration, until it is committed.
        self._ended: list[AgentEvent] = []
        self._is_turning = False
        # Done when the loop of the function has ended.
        self._loop_over = asyncio.get_running_loop().create_future()
        # Whether the task no longer belongs to this agent, or a commit has raised an error.
        self._is_dropped = False
        # The error that a commit has raised.
        self._error: Exception | None = None

    async def __anext__(self) -> Step:
        """Ends the current iteration, and begins the next one if there is one."""
        if self._is_turning:
            raise RuntimeError("two loops ask for the next iteration of a task at the same time")
        if self._calls.are_over or self._is_dropped or (self._step and self._step.is_interrupted):
            # The function has caught a CancelledError and may catch all further ones. The sleep
            # gives other asyncio tasks a turn.
            await asyncio.sleep(0)
            raise asyncio.CancelledError
        if self._calls.are_open:
            raise RuntimeError("a call still runs after the end of its iteration")
        self._end_step()
        self._is_turning = True
        try:
            if self._ended and not self.task.cancel.is_requested:
                await self._commit_ended()
        finally:
            self._is_turning = False
        if self.task.cancel.is_requested or self._is_used_up:
            self._end_loop()
            raise StopAsyncIteration
        self._step = Step(self.task.iterations + 1, self._calls, self._report)
        return self._step

    async def events(self, function: AgentFunction) -> list[AgentEvent]:
        """Runs the function.

        Returns the events that remain to be committed, or none if the task was dropped. Raises
        RejectedError and all other errors of `commit`.
        """
        work = asyncio.create_task(_text_of(function, Task(self)))
        try:
            await self._supervise(work)
            error = self._error_of(work)
            if not work.done() or self._calls.are_open or self._is_forced or self._is_dropped:
                await self._interrupt(work)
                error = error or (None if work.cancelled() else work.exception())
        except asyncio.CancelledError:
            await self._interrupt(work)
            raise
        if self._error is not None:
            raise self._error
        if self._is_dropped:
            return []
        ending = self._ending(work, error)
        if self._step is not None:
            # The open iteration is not recorded. It is marked as ended, so that it refuses later
            # calls.
            self._step.has_ended = True
        return [*self._ended, ending]

    async def _supervise(self, work: "asyncio.Task[str]") -> None:
        """Waits until the function has ended or must be interrupted."""
        forced = asyncio.create_task(self.task.cancel.wait_force_due())
        try:
            await _first(work, self._loop_over, forced)
            # Lets the function receive what a call has just returned.
            while any(call.done() for call in self._calls.running):
                await asyncio.sleep(0)
            if self._is_turning:
                await _first(work, self._loop_over)
            if self._loop_over.done():
                await _first(work, forced, timeout_seconds=_AFTER_SECONDS)
        finally:
            forced.cancel()

    async def _interrupt(self, work: "asyncio.Task[str]") -> None:
        """Ends the function, its calls, and every process that the task has started.

        A function that does not end keeps the task open. The control plane then ends the pod.
        """
        self._calls.are_over = True
        running = {work, *self._calls.running, *self._calls.left}
        for each in running:
            cancel(each)
        _, pending = await asyncio.wait(running, timeout=_GRACE_SECONDS)
        if pending:
            self._descendants.kill()
            await asyncio.wait(pending)
        for each in running:
            # Retrieves the exception, so that asyncio does not log it.
            each.cancelled() or each.exception()
        while self._calls.running:
            # Lets an asyncio task of the function receive what its call has just returned.
            await asyncio.sleep(0)
        await self._descendants.wait_gone(0, _KILLED_SECONDS)

    @property
    def _is_used_up(self) -> bool:
        return self.task.iterations == self.task.max_iterations

    @property
    def _is_forced(self) -> bool:
        """Whether a forced cancellation has interrupted the current iteration."""
        step = self._step
        return step is not None and (
            step.is_interrupted or (self._calls.are_over and self._calls.is_force_due)
        )

    async def _commit_ended(self) -> None:
        """Commits the last iteration. Raises CancelledError if the function must end."""
        await self._commit_or_end(self._ended)
        self._ended = []

    async def _report(self, report: IterationReported) -> None:
        """Reports the current iteration. Raises CancelledError if the function must end."""
        await self._commit_or_end([report])

    async def _commit_or_end(self, events: Sequence[AgentEvent]) -> None:
        try:
            self._is_dropped = not await self._commit(self.task.id, events)
        except Exception as error:  # noqa: BLE001 - raised again, but not in the function
            self._error, self._is_dropped = error, True
        if self._is_dropped:
            self._calls.are_over = True
            self._end_loop()
            raise asyncio.CancelledError

    def _end_loop(self) -> None:
        if not self._loop_over.done():
            self._loop_over.set_result(None)

    def _end_step(self) -> None:
        """Records the current iteration as ended."""
        if self._step is None:
            return
        self._step.has_ended = True
        self.task.iterations = self._step.number
        payload = self._step.payload(is_interrupted=self._is_forced)
        self._ended = [IterationCompleted(number=self._step.number, payload=payload)]
        self._step = None

    def _error_of(self, work: "asyncio.Task[str]") -> BaseException | None:
        """The error that ended the function before any interruption; None if there is none."""
        if not work.done():
            return None
        if self._calls.are_open:
            return RuntimeError("a call still runs after the end of its iteration")
        return asyncio.CancelledError() if work.cancelled() else work.exception()

    def _ending(self, work: "asyncio.Task[str]", error: BaseException | None) -> TaskEnded:
        """The end of the task, after the function has ended with this error."""
        result = "" if work.cancelled() or error is not None else work.result()
        step = self._step
        if self._is_forced:
            self._end_step()
            return TaskEnded(status=TaskStatus.CANCELLED, forced=True, result=result)
        if step is not None and (step.has_calls if error is None else step.is_whole):
            self._end_step()
        while isinstance(error, BaseExceptionGroup):
            # An asyncio.TaskGroup wraps the function's errors in an exception group.
            error = error.exceptions[0]
        if isinstance(error, TaskFailed):
            return _failed(str(error))
        if error is not None:
            _log.error("the agent failed", exc_info=error)
            return _failed(f"The agent failed: {description_of(error)}")
        if self.task.cancel.is_requested:
            return TaskEnded(status=TaskStatus.CANCELLED, result=result)
        if self._loop_over.done():
            limit = self.task.max_iterations
            reason = f"The task was not done within its limit of {limit} iterations."
            return TaskEnded(status=TaskStatus.FAILED, reason=reason, result=result)
        return TaskEnded(status=TaskStatus.COMPLETED, result=result)


async def _text_of(function: AgentFunction, task: Task) -> str:
    working = function(task)
    if not inspect.isawaitable(working):
        raise TaskFailed("The agent is not an async function.")
    result = await working
    return "" if result is None else storable_text(str(result))


async def _first(*parts: "asyncio.Future[Any]", timeout_seconds: float | None = None) -> None:
    """Waits until one of the parts is done, or until the timeout."""
    await asyncio.wait(parts, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)


async def _end(task: ActiveTask, commit: Commit, *events: AgentEvent) -> TaskEnded:
    """Proposes the end in one commit with the last iteration, so no event comes in between."""
    task.is_ending = True
    await commit(task.id, events)
    ending = events[-1]
    assert isinstance(ending, TaskEnded)
    return ending


def _failed(reason: str) -> TaskEnded:
    return TaskEnded(status=TaskStatus.FAILED, reason=storable_text(reason))
