"""The agent's loop: a model call and its tool call, repeated until the task has ended."""

from collections.abc import Callable, Sequence
from typing import Protocol

from evershell.agents.active_task import ActiveTask, CancelFlag
from evershell.agents.iteration import Calls, Limits
from evershell.agents.model import History, Iteration, Model, ModelFailure
from evershell.agents.tools import Tool, ToolFailure, ToolStatus, storable
from evershell.core.task import (
    AgentEvent,
    IterationCompleted,
    TaskEnded,
    TaskStarted,
    TaskStatus,
)


class RejectedError(Exception):
    """The control plane refused a call, and a retry would not help. The text says why."""


class Commit(Protocol):
    """Commits events of a task."""

    async def __call__(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        """Returns once they are committed: True if the task is still this agent's.

        Raises RejectedError.
        """


async def run_task(
    task: ActiveTask,
    model: Model,
    tool: Tool,
    commit: Commit,
    limits: Limits,
    phase_changed: Callable[[], None] = lambda: None,
) -> TaskEnded | None:
    """Works on a task until its end is committed, and returns the end that it proposed.

    Returns None if the task is no longer this agent's. What holds at each step:

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
      the tool ends the task `failed`, with a human-readable reason, and so does the limit of
      iterations. No such exception ends the process.
    5. A call is interrupted only when the flag's `force_at` has passed, and then at once, even if
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
        calls = Calls(task, model, tool, limits, phase_changed)
        return await _iterate(task, calls, commit)
    except RejectedError as error:
        return await _fail(task, commit, f"The agent's work could not be recorded: {error}")


async def _iterate(task: ActiveTask, calls: Calls, commit: Commit) -> TaskEnded | None:
    if task.iterations:
        reason = "The agent was restarted during the task, so its memory of the task is lost."
        return await _fail(task, commit, reason)
    history: list[Iteration] = []
    while not task.cancel.is_requested:
        if len(history) == task.max_iterations:
            reason = f"The task was not done within its limit of {task.max_iterations} iterations."
            return await _fail(task, commit, reason)
        try:
            record = await calls.iterate(History(task.description, history))
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
