"""Waiting for the end of a task: what both clients decide between their calls."""

from collections.abc import Callable
from dataclasses import replace

from evershell.client import _calls
from evershell.client._calls import Call
from evershell.client._fields import Seconds, seconds
from evershell.client.errors import (
    AgentUnreachableError,
    CallError,
    DeadlineExceededError,
    RateLimitedError,
    TaskNotEndedError,
    UnavailableError,
)
from evershell.client.states import CancelOutcome
from evershell.client.types import CancelResult, CancelTasksResult, Task

# The longest `wait` of CancelTask.
MAX_WAIT_SECONDS = 30.0
# Between two calls of a wait.
_PAUSE_SECONDS = 0.5
# A connection that is lost without a sign exceeds the deadline.
_OUTAGES = (UnavailableError, RateLimitedError, DeadlineExceededError)
# How long a wait goes on while the service is unavailable.
_OUTAGE_SECONDS = 300.0


class Limit:
    """The time limit of a wait."""

    def __init__(self, timeout: Seconds | None, monotonic: Callable[[], float]) -> None:
        self.timeout = None if timeout is None else seconds(timeout)
        self.monotonic = monotonic
        self._deadline = None if self.timeout is None else monotonic() + self.timeout

    def clip(self, wanted: float) -> float:
        """The wanted time, or what is left if that is less."""
        if self._deadline is None:
            return wanted
        return min(wanted, max(self._deadline - self.monotonic(), 0.0))

    def is_over(self) -> bool:
        return self._deadline is not None and self.monotonic() >= self._deadline


class CancelWait:
    """A cancellation whose end the caller waits for. Every call after the first names the task."""

    def __init__(
        self,
        workspace_id: str,
        task_id: str | None,
        reason: str,
        force_after: Seconds | None,
        limit: Limit,
    ) -> None:
        self._workspace_id = workspace_id
        self._task_id = task_id
        self._reason = reason
        self._force_after = force_after
        self._limit = limit
        self._called_at = 0.0
        self._failing_since: float | None = None
        self.result: CancelResult | None = None

    def next_call(self) -> Call[CancelResult]:
        """The call that waits for the end."""
        self._called_at = self._limit.monotonic()
        wait = self._limit.clip(MAX_WAIT_SECONDS)
        if self.result is None:
            return _calls.cancel(
                self._workspace_id, self._task_id, self._reason, wait, self._force_after
            )
        return _calls.cancel(self._workspace_id, self.result.task_id, self._reason, wait, None)

    def receive(self, answer: CancelResult) -> None:
        """Keeps the outcome of the first answer, and the task as it is now."""
        self._failing_since = None
        first, task = self.result, answer.task
        if first is None:
            self.result = answer
        elif first.requested_at is None and task is not None:
            self.result = replace(
                first,
                task=task,
                requested_at=task.cancel_requested_at,
                requested_by=task.cancel_requested_by,
                reason=task.cancel_reason,
            )
        else:
            self.result = replace(first, task=task)

    def fail(self, error: CallError) -> None:
        """Raises the error, unless the cancellation is recorded and the wait can go on."""
        if isinstance(error, AgentUnreachableError) and error.intent_recorded and error.task_id:
            self._failing_since = None
            # Whether this call or an earlier one recorded it is not known.
            self.result = self.result or CancelResult(
                self._workspace_id,
                CancelOutcome.ALREADY_REQUESTED,
                task_id=error.task_id,
                request_id=error.request_id,
            )
            return
        if self.result is None or not isinstance(error, _OUTAGES):
            raise error
        now = self._limit.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since > _OUTAGE_SECONDS:
            raise error

    def pause_seconds(self) -> float | None:
        """The time to wait before the next call; None if there is nothing left to wait for.

        Raises TaskNotEndedError if the time is over.
        """
        assert self.result is not None
        if self.result.is_over:
            return None
        if self._limit.is_over():
            raise TaskNotEndedError(
                f"The cancellation of task {self.result.task_id} is recorded, but the task did "
                f"not end within {self._limit.timeout:g} s.",
                self.result.task,
                self.result,
            )
        elapsed = self._limit.monotonic() - self._called_at
        return self._limit.clip(max(_PAUSE_SECONDS - elapsed, 0.0))


def pause_before_look(task: Task, limit: Limit) -> float | None:
    """The time to wait before the task is read again; None if it has ended.

    Raises TaskNotEndedError if the time is over.
    """
    if task.has_ended:
        return None
    if limit.is_over():
        raise TaskNotEndedError(
            f"Task {task.id} is {task.status} and did not end within {limit.timeout:g} s.", task
        )
    return limit.clip(_PAUSE_SECONDS)


class RemainingPauses:
    """The pauses between the calls that cancel many tasks, while tasks remain."""

    def __init__(self) -> None:
        self._pause_seconds = 0.0

    def after(self, result: CancelTasksResult) -> float:
        """How long to pause. Only if the call cancelled nothing: other transactions are slow."""
        self._pause_seconds = 0.0 if result.accepted else min(self._pause_seconds + 0.1, 1.0)
        return self._pause_seconds
