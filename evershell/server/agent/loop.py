"""The agent's loop: a model call and its tool call, repeated until the task has ended."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from evershell.server.agent.cancellation import CancelFlag
from evershell.server.agent.model import (
    History,
    Iteration,
    Model,
    ModelFailure,
    ModelReply,
    PartialReply,
)
from evershell.server.agent.output import storable
from evershell.server.agent.tools import Tool, ToolCall, ToolFailure, ToolResult, ToolStatus
from evershell.server.core.agent_events import (
    AgentEvent,
    IterationCompleted,
    TaskEnded,
    TaskStarted,
)
from evershell.server.core.task import Phase, TaskStatus

T = TypeVar("T")
# Takes the task's id and the number of the iteration.
Iterating = Callable[[str, int], AbstractContextManager[object]]

# How long the loop waits for an aborted model call to end. Then it continues without it.
_ABORT_SECONDS = 1.0


class RejectedError(Exception):
    """The control plane refused a call, and a retry would not help. The text says why."""


class Commit(Protocol):
    """Commits events of a task."""

    async def __call__(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        """Returns once they are committed: True if the task is still this agent's.

        Raises RejectedError.
        """


@dataclass(slots=True, kw_only=True)
class ActiveTask:
    """The task that the agent works on."""

    id: str
    description: str
    max_iterations: int
    cancel: CancelFlag = field(default_factory=CancelFlag)
    # The number of iterations that have ended.
    iterations: int = 0
    phase: Phase = Phase.NONE
    # Whether its end has been proposed to the control plane.
    is_ending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The time limit of one model call. A tool enforces its own."""

    model_timeout_seconds: float


async def run_task(
    task: ActiveTask,
    model: Model,
    tool: Tool,
    commit: Commit,
    limits: Limits,
    phase_changed: Callable[[], None] = lambda: None,
    iterating: Iterating = lambda task_id, number: nullcontext(),
) -> TaskEnded | None:
    """Works on a task until its end is committed, and returns the end that it proposed.

    Returns None if the task is no longer this agent's. `iterating` is entered for the duration of
    each iteration, with its number. What holds at each step:

    1. Nothing runs before `task_started` is committed.
    2. The cancel flag is checked before every iteration, including the first. Once it is set, no
      further iteration starts. The current one ends normally, and its event precedes the end of the
      task. A cancellation before the first iteration means zero iterations.
    3. An iteration is one model call and the tool call that it asked for. It is committed as one
      event with the tool call's result, so no tool call is committed without its result. Numbers
      count from 1 without gaps.
    4. The task ends after a final reply and its tool call: `cancelled` if the flag was set
      meanwhile, else `completed`. In both cases the result is the reply's `result_after_call`, if
      it has one and the tool call exited, else the reply's content. An exception of the model or
      the tool ends the task `failed`, with a reason for people, and so does the limit of
      iterations. No such exception ends the process.
    5. A call is interrupted only when the flag's `force_at` has passed, and then at once, also if
      that time was set or changed during the call. The iteration is committed: a model call as
      `interrupted`, with the text and the tokens received so far and without a tool call; a tool
      call with an `interrupted` result and its output so far. The end is then `cancelled` and
      forced. If the iteration ended before it was interrupted, the end is not forced.
    6. The end is the last event of the task. It is committed together with the last iteration if
      that iteration is then known to be the last. If the reply to a commit no longer names the
      task, nothing more is done.
    7. If this coroutine is cancelled, it first ends the current calls, and it commits nothing more.
    """
    try:
        if not await commit(task.id, [TaskStarted()]):
            return None
        calls = _Calls(task, model, tool, limits, phase_changed, iterating)
        return await _iterate(task, calls, commit)
    except RejectedError as error:
        return await _fail(task, commit, f"The agent's work could not be recorded: {error}")


async def _iterate(task: ActiveTask, calls: "_Calls", commit: Commit) -> TaskEnded | None:
    if task.iterations:
        reason = "The agent was restarted during the task, so its memory of the task is lost."
        return await _fail(task, commit, reason)
    history: list[Iteration] = []
    while not task.cancel.is_requested:
        if len(history) == task.max_iterations:
            reason = f"The task was not done within its limit of {task.max_iterations} iterations."
            return await _fail(task, commit, reason)
        try:
            record = await calls.iterate(History(task.description, history), len(history) + 1)
        except (ModelFailure, ToolFailure) as failure:
            return await _fail(task, commit, str(failure))
        except Exception as error:  # noqa: BLE001 - becomes the task's reason
            reason = f"The iteration failed: {type(error).__name__}: {error}"
            return await _fail(task, commit, reason)
        history.append(record.iteration)
        task.iterations = len(history)
        iterated = IterationCompleted(number=len(history), payload=record.payload())
        ending = _ending_after(record.iteration, task.cancel)
        if ending is not None:
            return await _end(task, commit, ending, iterated)
        if not await commit(task.id, [iterated]):
            return None
    return await _end(task, commit, TaskEnded(status=TaskStatus.CANCELLED))


def _ending_after(iteration: Iteration, cancel: CancelFlag) -> TaskEnded | None:
    """The end of the task if this iteration was its last one, else None."""
    reply, result = iteration.reply, iteration.result
    if reply.is_interrupted or (result is not None and result.status is ToolStatus.INTERRUPTED):
        return TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    if reply.final:
        status = TaskStatus.CANCELLED if cancel.is_requested else TaskStatus.COMPLETED
        has_exited = result is not None and result.status is ToolStatus.EXITED
        after_call = reply.result_after_call if has_exited else ""
        return TaskEnded(status=status, result=storable(after_call or reply.content))
    return TaskEnded(status=TaskStatus.CANCELLED) if cancel.is_requested else None


async def _end(
    task: ActiveTask, commit: Commit, ending: TaskEnded, *last: IterationCompleted
) -> TaskEnded:
    """Proposes the end, in one commit with the last iteration, so that nothing comes in between."""
    task.is_ending = True
    await commit(task.id, [*last, ending])
    return ending


async def _fail(task: ActiveTask, commit: Commit, reason: str) -> TaskEnded:
    return await _end(task, commit, TaskEnded(status=TaskStatus.FAILED, reason=storable(reason)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """An iteration that has ended, and the durations of its calls."""

    iteration: Iteration
    model_call_ms: int
    tool_call_ms: int

    def payload(self) -> dict[str, Any]:
        """The fields of the message IterationCompleted, except the number."""
        reply, result = self.iteration.reply, self.iteration.result
        payload: dict[str, Any] = {
            "model_call": {
                "model": storable(reply.model),
                "content": storable(reply.content),
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "duration_ms": self.model_call_ms,
                "status": "interrupted" if reply.is_interrupted else "completed",
            }
        }
        if reply.tool_call is not None and result is not None:
            payload["tool_call"] = {
                "id": storable(reply.tool_call.id),
                "name": storable(reply.tool_call.name),
                "arguments": storable(reply.tool_call.arguments),
                "result": {
                    "status": str(result.status),
                    "exit_code": result.exit_code,
                    "output": storable(result.output),
                    "truncated_bytes": result.truncated_bytes,
                },
                "duration_ms": self.tool_call_ms,
            }
        return payload


class _Calls:
    """Makes the two calls of an iteration. A forced cancellation interrupts either."""

    def __init__(
        self,
        task: ActiveTask,
        model: Model,
        tool: Tool,
        limits: Limits,
        phase_changed: Callable[[], None],
        iterating: Iterating,
    ) -> None:
        self._task = task
        self._model = model
        self._tool = tool
        self._limits = limits
        self._phase_changed = phase_changed
        self._iterating = iterating

    async def iterate(self, history: History, number: int) -> _Record:
        """Runs one iteration. Raises what the model or the tool raises."""
        try:
            with self._iterating(self._task.id, number):
                began = time.monotonic()
                self._enter(Phase.MODEL_CALL)
                reply = await self._call_model(history)
                replied = time.monotonic()
                result = None
                if reply.tool_call is not None:
                    self._enter(Phase.TOOL_CALL)
                    result = await self._call_tool(reply.tool_call)
        finally:
            self._enter(Phase.NONE)
        return _Record(
            iteration=Iteration(reply, result),
            model_call_ms=_milliseconds(replied - began),
            tool_call_ms=_milliseconds(time.monotonic() - replied),
        )

    def _enter(self, phase: Phase) -> None:
        self._task.phase = phase
        # The commit that follows the end of an iteration says so. A heartbeat at the same time
        # would delay it.
        if phase is not Phase.NONE:
            self._phase_changed()

    async def _call_model(self, history: History) -> ModelReply:
        """Returns an interrupted reply if `force_at` passed before the call succeeded.

        Raises what the model raises.
        """
        limit_seconds = self._limits.model_timeout_seconds
        partial = PartialReply(self._model.name)
        call = asyncio.ensure_future(self._model.next(history, partial))
        try:
            done = await self._wait(call, timeout_seconds=limit_seconds)
            if call in done:
                return _result_of(call)
            if not done:
                raise ModelFailure(f"The model did not answer within {limit_seconds:g} seconds.")
        except Exception:
            if not self._task.cancel.is_force_due:
                raise
        finally:
            # Still running if it is interrupted, has timed out, or this coroutine is cancelled.
            if not call.done():
                call.cancel()
                await asyncio.wait({call}, timeout=_ABORT_SECONDS)
        return partial.interrupted()

    async def _call_tool(self, tool_call: ToolCall) -> ToolResult:
        if self._task.cancel.is_force_due:
            return ToolResult(status=ToolStatus.INTERRUPTED, output="")
        interrupt = asyncio.Event()
        call = asyncio.ensure_future(self._tool.run(tool_call, interrupt))
        try:
            done = await self._wait(call)
            if call not in done:
                interrupt.set()
                await asyncio.wait({call})
            return _result_of(call)
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call})

    async def _wait(
        self, call: "asyncio.Future[Any]", timeout_seconds: float | None = None
    ) -> "set[asyncio.Future[Any]]":
        """Waits until the call has ended or `force_at` has passed, at most for the timeout.

        The result contains the call if it has ended, and is empty after the timeout.
        """
        forced = asyncio.ensure_future(self._task.cancel.wait_force_due())
        try:
            done, _ = await asyncio.wait(
                {call, forced}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            return done
        finally:
            forced.cancel()


def _result_of(call: "asyncio.Future[T]") -> T:
    if call.cancelled():
        # A CancelledError from inside the call must not look like the cancellation of the loop.
        raise RuntimeError("the call cancelled itself")
    return call.result()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
