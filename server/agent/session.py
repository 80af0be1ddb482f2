"""What the agent has in hand: one task, or none."""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from evershell.agent.v1.agent_service_pb2 import Assignment, Cancellation
from evershell.agent.v1.runtime_service_pb2 import Directive
from structlog.typing import FilteringBoundLogger

from server.agent.cancellation import CancelFlag
from server.agent.loop import ActiveTask, RejectedError
from server.agent.shutdown import AgentOverError, ExitCode, Shutdown
from server.core.task import Phase
from server.core.task_lifecycle import TaskEnded
from server.core.trace import TraceContext

# Task ids that are remembered after their end, or before their start. What is late comes seconds
# late, not a thousand tasks late.
_REMEMBERED_TASKS = 1_000

# Works on a task: its end as it was proposed, or None when it was dropped.
RunTask = Callable[[ActiveTask], Coroutine[Any, Any, TaskEnded | None]]


class WrongTaskError(Exception):
    """The agent works on another task."""


class Session:
    """Takes tasks into hand, one at a time, from the signal or from a directive, whichever comes
    first, and never one twice.

    A directive says what the database held at some moment between the sending of a call and its
    reply. So only a reply to a call that was sent *after* a task was taken into hand can say that
    the task is over: `mark` orders the two. An older heartbeat's reply, still under way when a new
    task arrives, does no harm.
    """

    def __init__(
        self,
        run_task: RunTask,
        shutdown: Shutdown,
        changed: Callable[[], None],
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run_task = run_task
        self._shutdown = shutdown
        self._changed = changed
        self._log = log
        self._clock = clock
        self._marks = itertools.count(1)
        self._taken_at = 0
        self._is_closed = False
        self._task: ActiveTask | None = None
        self._runner: asyncio.Task[None] | None = None
        # What is begun when the task in hand has gone.
        self._next: Assignment | None = None
        # Flags by task id, also of tasks that have not come yet.
        self._flags: OrderedDict[str, CancelFlag] = OrderedDict()
        # Tasks that have ended here, each with the mark at its end.
        self._finished: OrderedDict[str, int] = OrderedDict()
        # By task id: the trace of the call that last said something of it. Who follows that trace
        # sees what came of the call.
        self._traces: OrderedDict[str, TraceContext] = OrderedDict()

    @property
    def task(self) -> ActiveTask | None:
        """The task in hand."""
        return self._task

    @property
    def task_id(self) -> str:
        """Empty when the agent is idle."""
        return self._task.id if self._task is not None else ""

    @property
    def phase(self) -> Phase:
        """Where in its iteration the agent is."""
        return self._task.phase if self._task is not None else Phase.NONE

    @property
    def trace(self) -> TraceContext | None:
        """The trace that the task in hand is part of."""
        return self._traces.get(self.task_id)

    def mark(self) -> int:
        """A moment, to compare with others of this session. Taken before a call is sent."""
        return next(self._marks)

    def start(self, assignment: Assignment, trace: TraceContext | None = None) -> None:
        """Takes a task into hand, if that has not been done already. Raises WrongTaskError while it
        works on another one.
        """
        self._note_trace(assignment.task_id, trace)
        self._note_cancellation(assignment)
        if (
            assignment.task_id in (self.task_id, self._next_id)
            or assignment.task_id in self._finished
        ):
            return
        if self._task is None:
            self._take(assignment)
        elif self._task.is_ending and self._next is None:
            # Its end is on record, or nobody would hand over another task; only the acknowledgement
            # is still under way.
            self._next = assignment
        else:
            # One of the two is mistaken; the next directive says who.
            self._changed()
            raise WrongTaskError(f"The agent works on task {self._task.id}.")

    def cancel(
        self, task_id: str, cancellation: Cancellation, trace: TraceContext | None = None
    ) -> bool:
        """Flags a task; False: the agent does not have it, and will run no iteration of it should
        it come.
        """
        self._note_trace(task_id, trace)
        self._flag(task_id).request(_force_at(cancellation))
        is_known = task_id in (self.task_id, self._next_id)
        if not is_known and task_id not in self._finished:
            # If the database holds it for this agent's, the next directive says so, and its end is
            # committed.
            self._changed()
        return is_known

    def apply(self, directive: Directive, sent_at: int, committed_task_id: str = "") -> None:
        """Does what the database holds. `sent_at` is the mark of the call that it is the reply to.

        The loop reads the replies to its own commits, those for `committed_task_id`, itself.
        """
        if self._is_closed:
            return
        if directive.fenced:
            self._shutdown.begin(ExitCode.FENCED, "the epoch is over")
            return
        assignment = directive.task if directive.HasField("task") else None
        task_id = assignment.task_id if assignment is not None else ""
        if self._task is not None and task_id != self._task.id:
            if sent_at < self._taken_at:
                return
            if assignment is not None and task_id not in self._finished:
                self._note_cancellation(assignment)
                self._next = assignment
            if self._runner is not None and committed_task_id != self._task.id:
                self._log.info("task_dropped", task_id=self._task.id)
                self._runner.cancel()
        elif assignment is not None and self._finished.get(task_id, sent_at) < sent_at:
            # The task has ended here, but it is still open in the database: its end was never
            # committed.
            self._shutdown.begin(ExitCode.CRASHED, f"the end of task {task_id} was not committed")
        elif assignment is not None:
            self.start(assignment)

    async def close(self) -> None:
        """Ends the current task and everything that it runs. No further task is accepted."""
        self._is_closed = True
        self._next = None
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.wait({runner})

    @property
    def _next_id(self) -> str:
        return self._next.task_id if self._next is not None else ""

    def _note_trace(self, task_id: str, trace: TraceContext | None) -> None:
        if trace is not None and task_id not in self._finished:
            self._traces[task_id] = trace
            self._traces.move_to_end(task_id)
            if len(self._traces) > _REMEMBERED_TASKS:
                self._traces.popitem(last=False)

    def _note_cancellation(self, assignment: Assignment) -> None:
        if assignment.HasField("cancellation"):
            self._flag(assignment.task_id).request(_force_at(assignment.cancellation))

    def _flag(self, task_id: str) -> CancelFlag:
        if self._task is not None and self._task.id == task_id:
            return self._task.cancel
        flag = self._flags.setdefault(task_id, CancelFlag(self._clock))
        self._flags.move_to_end(task_id)
        if len(self._flags) > _REMEMBERED_TASKS:
            self._flags.popitem(last=False)
        return flag

    def _take(self, assignment: Assignment) -> None:
        if self._shutdown.is_begun:
            return
        self._task = ActiveTask(
            id=assignment.task_id,
            description=assignment.description,
            max_iterations=assignment.max_iterations,
            iterations=assignment.iterations,
            cancel=self._flag(assignment.task_id),
        )
        self._taken_at = self.mark()
        self._runner = asyncio.create_task(self._run(self._task))
        self._runner.add_done_callback(self._put_down)

    async def _run(self, task: ActiveTask) -> None:
        self._log.info("task_taken", task_id=task.id)
        with suppress(AgentOverError):
            ending = await self._run_task(task)
            status = str(ending.status) if ending is not None else "dropped"
            self._log.info(
                "task_over", task_id=task.id, proposed=status, iterations=task.iterations
            )

    def _put_down(self, runner: "asyncio.Task[None]") -> None:
        """Forgets the task when its runner has ended. A runner that raised has not committed the
        end, so the agent ends too.
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
            self._take(following)
        self._changed()


def _force_at(cancellation: Cancellation) -> float | None:
    """Seconds since 1970."""
    if not cancellation.HasField("force_at"):
        return None
    return cancellation.force_at.seconds + cancellation.force_at.nanos / 1e9
