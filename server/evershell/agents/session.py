"""The agent's current task, and the signals and directives that start, cancel or drop it."""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive

from evershell.agents.active_task import ActiveTask, CancelFlag
from evershell.agents.loop import RejectedError
from evershell.agents.shutdown import AgentEndingError, ExitCode, Shutdown
from evershell.agents.step import cancel
from evershell.core.task import Phase, TaskEnded
from evershell.core.trace import TraceContext
from evershell.telemetry.logs import Log

# The number of tasks that are remembered after their end or before their start, for messages that
# arrive late. These arrive within seconds, and no agent runs this many tasks in that time.
_REMEMBERED_TASKS = 1_000

# The time limit for ending the current task when the agent ends.
_CLOSING_SECONDS = 4.0

# Works on a task. Returns the end that it proposed; None if the task is no longer this agent's.
RunTask = Callable[[ActiveTask], Coroutine[Any, Any, TaskEnded | None]]


class Session:
    """Runs one task at a time, and no task twice.

    A task arrives with a signal and with directives. The first of these messages starts the task.

    A directive shows the state of the database at some time between a call and its reply. The reply
    to an older heartbeat may arrive late. So a reply that does not name the current task ends the
    task only if the call was sent after the task had started. `mark` numbers calls, and the starts
    and ends of tasks, in order.
    """

    def __init__(
        self,
        run_task: RunTask,
        shutdown: Shutdown,
        beat_now: Callable[[], None],
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`beat_now` sends a heartbeat, whose reply carries a new directive."""
        self._run_task = run_task
        self._shutdown = shutdown
        self._beat_now = beat_now
        self._log = log
        self._clock = clock
        self._marks = itertools.count(1)
        # The mark of the current task's start.
        self._started_at = 0
        self._is_closed = False
        self._task: ActiveTask | None = None
        self._runner: asyncio.Task[None] | None = None
        # The task that starts when the runner of the current task has ended.
        self._next: Assignment | None = None
        # Cancel flags by task id, even of tasks that have not arrived yet.
        self._flags: OrderedDict[str, CancelFlag] = OrderedDict()
        # The tasks that have ended in this agent, each with the mark of its end.
        self._finished: OrderedDict[str, int] = OrderedDict()
        # The trace of the last call about each task, by task id. The commits of the task continue
        # this trace, so that it includes the effects of the call.
        self._traces: OrderedDict[str, TraceContext] = OrderedDict()

    @property
    def task(self) -> ActiveTask | None:
        """The current task; None when the agent is idle."""
        return self._task

    @property
    def task_id(self) -> str:
        """The id of the current task; empty when the agent is idle."""
        return self._task.id if self._task is not None else ""

    @property
    def phase(self) -> Phase:
        """The part of the iteration that the agent is in."""
        return self._task.phase if self._task is not None else Phase.NONE

    @property
    def trace(self) -> TraceContext | None:
        """The trace of the current task, if it belongs to one."""
        return self._traces.get(self.task_id)

    def mark(self) -> int:
        """A number that increases with every call of `mark`. Get one before sending a call."""
        return next(self._marks)

    def start(self, assignment: Assignment, trace: TraceContext | None = None) -> bool:
        """Starts a task, or queues it while the current task is ending. A repeat has no effect.

        Returns False if the agent works on another task.
        """
        self._remember_trace(assignment.task_id, trace)
        self._apply_cancellation(assignment)
        if (
            assignment.task_id in (self.task_id, self._next_id)
            or assignment.task_id in self._finished
        ):
            return True
        if self._task is None:
            self._begin(assignment)
        elif self._task.is_ending and self._next is None:
            # The control plane assigns a task only after the end of the previous one is committed.
            # The commit has therefore succeeded, but its acknowledgement has not arrived yet.
            self._next = assignment
        else:
            # Either the agent or the sender is out of date: the next directive names the task that
            # the database assigns to the agent.
            self._beat_now()
            return False
        return True

    def cancel(
        self, task_id: str, cancellation: Cancellation, trace: TraceContext | None = None
    ) -> bool:
        """Sets the cancel flag of a task. Returns False if the agent does not have the task.

        If the task arrives later, the agent ends it without running an iteration.
        """
        is_known = task_id in (self.task_id, self._next_id)
        self._remember_trace(task_id, trace)
        self._flag(task_id).request(_force_after_seconds(cancellation))
        if not is_known and task_id not in self._finished:
            # If the database has assigned the task to this agent, the next directive starts it, and
            # its end is committed at once.
            self._beat_now()
        return is_known

    def apply(self, directive: Directive, sent_at: int, committed_task_id: str = "") -> None:
        """Makes the agent follow the directive. `sent_at` is the mark of the call that it answers.

        For the reply to a commit, `committed_task_id` is the task of the commit. The loop itself
        stops work on that task if the reply no longer names it.
        """
        if self._is_closed:
            return
        if directive.fenced:
            self._shutdown.begin(ExitCode.FENCED, "the epoch is over")
            return
        assignment = directive.task if directive.HasField("task") else None
        task_id = assignment.task_id if assignment is not None else ""
        if self._task is not None and task_id != self._task.id:
            if sent_at < self._started_at:
                return
            if assignment is not None and task_id not in self._finished:
                self._apply_cancellation(assignment)
                self._next = assignment
            if self._runner is not None and committed_task_id != self._task.id:
                self._log.info("task_dropped", task_id=self._task.id)
                cancel(self._runner)
        elif assignment is not None and self._finished.get(task_id, sent_at) < sent_at:
            # The task has ended in the agent but not in the database, so its end was not committed.
            self._shutdown.begin(ExitCode.CRASHED, f"the end of task {task_id} was not committed")
        elif assignment is not None:
            self.start(assignment)

    async def close(self) -> None:
        """Stops the current task and everything that it runs. Accepts no further task."""
        self._is_closed = True
        self._next = None
        runner = self._runner
        if runner is not None:
            cancel(runner)
            # A function that catches CancelledError ends only when the process does.
            await asyncio.wait({runner}, timeout=_CLOSING_SECONDS)

    @property
    def _next_id(self) -> str:
        return self._next.task_id if self._next is not None else ""

    def _remember_trace(self, task_id: str, trace: TraceContext | None) -> None:
        if trace is not None and task_id not in self._finished:
            self._traces[task_id] = trace
            self._traces.move_to_end(task_id)
            if len(self._traces) > _REMEMBERED_TASKS:
                self._traces.popitem(last=False)

    def _apply_cancellation(self, assignment: Assignment) -> None:
        if assignment.HasField("cancellation"):
            self._flag(assignment.task_id).request(_force_after_seconds(assignment.cancellation))

    def _flag(self, task_id: str) -> CancelFlag:
        if self._task is not None and self._task.id == task_id:
            return self._task.cancel
        flag = self._flags.setdefault(task_id, CancelFlag(self._clock))
        self._flags.move_to_end(task_id)
        if len(self._flags) > _REMEMBERED_TASKS:
            self._flags.popitem(last=False)
        return flag

    def _begin(self, assignment: Assignment) -> None:
        if self._shutdown.is_begun:
            return
        self._task = ActiveTask(
            id=assignment.task_id,
            description=assignment.description,
            max_iterations=assignment.max_iterations,
            iterations=assignment.iterations,
            cancel=self._flag(assignment.task_id),
        )
        self._started_at = self.mark()
        self._runner = asyncio.create_task(self._run(self._task))
        self._runner.add_done_callback(self._finish)

    async def _run(self, task: ActiveTask) -> None:
        self._log.info("task_accepted", task_id=task.id)
        with suppress(AgentEndingError):
            ending = await self._run_task(task)
            status = str(ending.status) if ending is not None else "dropped"
            self._log.info(
                "task_finished", task_id=task.id, proposed=status, iterations=task.iterations
            )

    def _finish(self, runner: "asyncio.Task[None]") -> None:
        """Forgets the task when its runner has ended, and starts the next one.

        If the runner raised, the end of the task was not committed, so the agent shuts down.
        """
        assert self._task is not None
        error = None if runner.cancelled() else runner.exception()
        if isinstance(error, RejectedError):
            self._shutdown.begin(
                ExitCode.REJECTED, f"the end of task {self._task.id} was refused: {error}"
            )
        elif error is not None:
            self._shutdown.begin(
                ExitCode.CRASHED, f"task {self._task.id} crashed the agent: {error!r}"
            )
            self._log.error("task_crashed", task_id=self._task.id, exc_info=error)
        self._finished[self._task.id] = self.mark()
        if len(self._finished) > _REMEMBERED_TASKS:
            self._finished.popitem(last=False)
        self._flags.pop(self._task.id, None)
        self._traces.pop(self._task.id, None)
        self._task = self._runner = None
        following, self._next = self._next, None
        if following is not None and following.task_id not in self._finished:
            self._begin(following)
        self._beat_now()


def _force_after_seconds(cancellation: Cancellation) -> float | None:
    return cancellation.force_after_ms / 1000 if cancellation.HasField("force_after_ms") else None
