"""Decides when to make a call again: after a failure, to resume a stream, or while waiting."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from evershell.workspace.v1 import field_limits, workspace_service_pb2
from google.protobuf.message import Message

from evershell.backoff import backoff
from evershell.client import _calls
from evershell.client._calls import LONGEST_SECONDS, Call, Seconds, request, seconds
from evershell.client._options import Options
from evershell.client.answers import OrganizationEvent, from_stream_error
from evershell.client.errors import (
    AgentUnreachableError,
    CallError,
    DeadlineExceededError,
    InternalError,
    RateLimitedError,
    TaskNotEndedError,
    UnauthenticatedError,
    UnavailableError,
)
from evershell.client.events import Event, TaskCompleted, event_of
from evershell.client.types import CancelOutcome, CancelResult, Task

Item = TypeVar("Item")

_log = logging.getLogger("evershell.client")

# The pause between two calls while the client waits for the end of a task.
_PAUSE_SECONDS = 0.5
# Includes DeadlineExceededError: a call fails with it if the connection breaks silently.
_OUTAGES = (UnavailableError, RateLimitedError, DeadlineExceededError)
# How long CancelWait keeps repeating its call while every call fails with one of _OUTAGES.
_OUTAGE_SECONDS = 300.0


class Attempts:
    """The attempts of one call."""

    def __init__(self, call: Call[Any], options: Options, monotonic: Callable[[], float]) -> None:
        self._can_repeat = call.can_repeat
        self._max_retries = options.max_retries
        self._monotonic = monotonic
        self._deadline = monotonic() + options.timeout_of(call.rpc) + call.extra_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        return min(max(self._deadline - self._monotonic(), 0.0), LONGEST_SECONDS)

    def pause_seconds(self, error: CallError) -> float:
        """The pause before the next attempt. Raises `error` if there must be no further attempt."""
        self._failures += 1
        pause = backoff_seconds(self._failures, error)
        if (
            not self._can_repeat
            # After AgentUnreachableError, a call is not repeated, because it may have taken effect.
            or not isinstance(error, UnavailableError | RateLimitedError)
            or self._failures > self._max_retries
            or pause >= self.remaining_seconds()
        ):
            raise error
        return pause


def backoff_seconds(failures: int, error: CallError) -> float:
    """The pause that the service asks for; if it asks for none, exponential backoff with jitter."""
    if error.retry_after is not None:
        return error.retry_after
    return backoff(failures, first=0.2, longest=5.0, spread=0.5)


def log_failure(rpc: str, error: CallError, pause_seconds: float) -> None:
    """Logs that a call has failed and will be made again."""
    _log.info(
        "%s failed with %s, request %s; again in %.1f s",
        rpc,
        error.code,
        error.request_id or "-",
        pause_seconds,
    )


@dataclass(frozen=True)
class WatchLimits:
    """How long a watch may last and reconnect, in seconds, and with which credential."""

    connect_seconds: float
    reconnect_seconds: float
    # None for no limit.
    timeout: float | None
    renews_credential: bool
    monotonic: Callable[[], float]


class Watch(ABC, Generic[Item]):
    """The state of one watch, which continues over several streams."""

    rpc: str

    def __init__(self, after: int, limits: WatchLimits) -> None:
        # The last position that was received.
        self._after = after
        self._limits = limits
        self._monotonic = limits.monotonic
        self._deadline = None if limits.timeout is None else limits.monotonic() + limits.timeout
        self._has_connected = False
        # The number of failures since the last message arrived.
        self._failures = 0
        self._failing_since = 0.0
        self.is_over = False

    @abstractmethod
    def request(self) -> Message:
        """The request for the next stream, which begins after the last position."""

    @abstractmethod
    def _item(self, message: Any) -> Item | None:
        """What to yield for a message that is not an error; None for nothing."""

    def remaining_seconds(self) -> float | None:
        """The time that is left for the watch; None if the watch has no limit."""
        if self._deadline is None:
            return None
        return min(max(self._deadline - self._monotonic(), 0.0), LONGEST_SECONDS)

    def receive(self, message: Any) -> Item | None:
        """What to yield for the message; None for nothing. Raises CallError."""
        if message.HasField("error"):
            raise from_stream_error(message.error)
        self._has_connected, self._failures = True, 0
        return self._item(message)

    def pause_seconds(self, error: CallError) -> float:
        """The pause before the next stream. Raises CallError if there must be no further stream."""
        now = self._monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        self._has_connected |= error.is_from_service
        pause = backoff_seconds(self._failures, error)
        if not self._can_overcome(error):
            raise error
        remaining = self.remaining_seconds()
        if remaining is not None and pause >= remaining:
            raise DeadlineExceededError("The timeout of the watch has passed.") from error
        limits = self._limits
        limit_seconds = limits.reconnect_seconds if self._has_connected else limits.connect_seconds
        if now + pause - self._failing_since > limit_seconds:
            raise error
        return pause

    def _can_overcome(self, error: CallError) -> bool:
        if isinstance(error, UnavailableError | RateLimitedError):
            return True
        if isinstance(error, UnauthenticatedError):
            # The token may have expired. The next stream uses a new token.
            return self._limits.renews_credential and self._failures == 1
        # gRPC reports this error if the connection breaks in the middle of a message.
        is_broken = isinstance(error, InternalError) and not error.is_from_service
        return is_broken and self._failures == 1


class WorkspaceWatch(Watch[Event]):
    """A watch of a workspace."""

    rpc = "WatchEvents"

    def __init__(
        self, workspace_id: str, after: int, task_id: str | None, limits: WatchLimits
    ) -> None:
        super().__init__(after, limits)
        self._workspace_id = workspace_id
        self._task_id = task_id

    def request(self) -> Message:
        return request(
            workspace_service_pb2.WatchEventsRequest,
            workspace_id=self._workspace_id,
            after=self._after,
        )

    def _item(self, message: Any) -> Event | None:
        if not message.HasField("event") or message.event.seq <= self._after:
            return None
        event = event_of(message.event)
        self._after = event.seq
        if self._task_id is None:
            return event
        if event.task_id != self._task_id:
            return None
        self.is_over = isinstance(event.payload, TaskCompleted)
        return event


class OrganizationWatch(Watch[OrganizationEvent]):
    """A watch of all workspaces of an organization."""

    rpc = "WatchOrganization"

    def request(self) -> Message:
        return request(workspace_service_pb2.WatchOrganizationRequest, after=self._after)

    def _item(self, message: Any) -> OrganizationEvent | None:
        event = event_of(message.event) if message.HasField("event") else None
        if message.position < self._after + (event is not None):
            return None
        self._after = message.position
        return OrganizationEvent(self._after, event)


class Limit:
    """The time limit of a wait."""

    def __init__(self, timeout: Seconds | None, monotonic: Callable[[], float]) -> None:
        self.timeout = None if timeout is None else seconds(timeout)
        self.monotonic = monotonic
        self._deadline = None if self.timeout is None else monotonic() + self.timeout

    def clip(self, wanted: float) -> float:
        """`wanted`, or the time that is left if that is shorter."""
        if self._deadline is None:
            return wanted
        return min(wanted, max(self._deadline - self.monotonic(), 0.0))

    def is_over(self) -> bool:
        return self._deadline is not None and self.monotonic() >= self._deadline


class CancelWait:
    """Cancels a task and waits for its end. Every call after the first one names the task."""

    def __init__(
        self,
        workspace_id: str,
        task_id: str | None,
        reason: str,
        force_after: Seconds | None,
        include_descendants: bool,
        limit: Limit,
    ) -> None:
        self._workspace_id = workspace_id
        self._task_id = task_id
        self._reason = reason
        self._force_after = force_after
        self._include_descendants = include_descendants
        self._limit = limit
        self._called_at = 0.0
        self._failing_since: float | None = None
        self.result: CancelResult | None = None

    def next_call(self) -> Call[CancelResult]:
        """The next call, in which the service waits for the end of the task."""
        self._called_at = self._limit.monotonic()
        wait = self._limit.clip(field_limits.CANCEL_TASK_WAIT_MAX)
        if self.result is None:
            return _calls.cancel(
                self._workspace_id,
                self._task_id,
                self._reason,
                wait,
                self._force_after,
                self._include_descendants,
            )
        return _calls.cancel(self._workspace_id, self.result.task_id, self._reason, wait, None)

    def receive(self, answer: CancelResult) -> None:
        """Keeps the outcome of the first answer, and the task from the latest answer."""
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
        """Raises the error, unless the cancellation is recorded and the client can keep waiting."""
        if isinstance(error, AgentUnreachableError) and error.intent_recorded and error.task_id:
            self._failing_since = None
            # The error does not tell whether this call or an earlier one recorded the cancellation.
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
        """The pause before the next call; None if there is nothing left to wait for.

        Raises TaskNotEndedError if the time limit of the wait has passed.
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
    """The pause before the task is read again; None if the task has ended.

    Raises TaskNotEndedError if the time limit of the wait has passed.
    """
    if task.has_ended:
        return None
    if limit.is_over():
        raise TaskNotEndedError(
            f"Task {task.id} is {task.status} and did not end within {limit.timeout:g} s.", task
        )
    return limit.clip(_PAUSE_SECONDS)
