"""The spans of a task: its iterations, its commits, and its cancellation."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from evershell.server.agent.spans import Span, Spans
from evershell.server.core.trace import TraceContext


class TaskSpans:
    """Puts them into the trace of the last call about the task."""

    def __init__(self, spans: Spans, current: Callable[[], TraceContext | None]) -> None:
        """`current` returns the position of the current task in its trace."""
        self._spans = spans
        self._current = current
        # The id of the task, and the span. At most one task is being cancelled at a time.
        self._cancellation: tuple[str, Span] | None = None

    def iteration(self, task_id: str, number: int) -> AbstractContextManager[Span | None]:
        """The span of an iteration. The calls of the model and the tool are its children."""
        return self._spans.within(
            "iteration", self._current(), task_id=task_id, iteration=str(number)
        )

    def commit(self, task_id: str) -> AbstractContextManager[Span | None]:
        """The span of a commit. The call of the control plane is its child."""
        return self._spans.within("commit", self._current(), task_id=task_id)

    def cancelling(self, task_id: str, signal: TraceContext) -> TraceContext:
        """Begins the span of a cancellation, and returns the new position of the task.

        It lasts from the signal to the end of the task, or to the next signal.
        """
        self._end()
        span = self._spans.begin("cancellation", signal, task_id=task_id)
        if span is None:
            return signal
        self._cancellation = (task_id, span)
        return span.context

    def ended(self, task_id: str) -> None:
        """Ends the span of the task's cancellation, if there is one."""
        if self._cancellation is not None and self._cancellation[0] == task_id:
            self._end()

    def _end(self) -> None:
        if self._cancellation is not None:
            self._spans.end(self._cancellation[1])
            self._cancellation = None
