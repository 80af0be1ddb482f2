"""How far a watcher has read a log, and when it connects again."""

from collections.abc import Callable
from typing import Any

from evershell.workspace.v1 import workspace_service_pb2

from evershell.client._attempts import backoff_seconds
from evershell.client._failures import from_stream_error
from evershell.client._fields import LONGEST_SECONDS, request
from evershell.client.errors import (
    CallError,
    DeadlineExceededError,
    InternalError,
    RateLimitedError,
    UnauthenticatedError,
    UnavailableError,
)
from evershell.client.events import Event, TaskCompleted

# The service sends a heartbeat after 15 s without an event.
IDLE_SECONDS = 45.0


class Watch:
    """The state of one watch, which survives its streams."""

    def __init__(
        self,
        workspace_id: str,
        after: int,
        task_id: str | None,
        *,
        connect_seconds: float,
        reconnect_seconds: float,
        timeout: float | None,
        renews_credential: bool,
        monotonic: Callable[[], float],
    ) -> None:
        self._workspace_id = workspace_id
        self._after = after
        self._task_id = task_id
        self._connect_seconds = connect_seconds
        self._reconnect_seconds = reconnect_seconds
        self._renews_credential = renews_credential
        self._monotonic = monotonic
        self._deadline = None if timeout is None else monotonic() + timeout
        self._has_connected = False
        # Since the last message.
        self._failures = 0
        self._failing_since = 0.0
        self.is_over = False

    def request(self) -> workspace_service_pb2.WatchEventsRequest:
        """The request of the next stream, which begins after the last event that was received."""
        return request(
            workspace_service_pb2.WatchEventsRequest,
            workspace_id=self._workspace_id,
            after=self._after,
        )

    def remaining_seconds(self) -> float | None:
        """The time that is left for the watch; None for no limit."""
        if self._deadline is None:
            return None
        return min(max(self._deadline - self._monotonic(), 0.0), LONGEST_SECONDS)

    def receive(self, message: Any) -> Event | None:
        """The event of the message; None if there is nothing to yield. Raises CallError."""
        if message.HasField("error"):
            raise from_stream_error(message.error)
        self._has_connected, self._failures = True, 0
        if not message.HasField("event") or message.event.seq <= self._after:
            return None
        event = Event._from_message(message.event)
        self._after = event.seq
        if self._task_id is None:
            return event
        if event.task_id != self._task_id:
            return None
        self.is_over = isinstance(event.payload, TaskCompleted)
        return event

    def pause_seconds(self, error: CallError) -> float:
        """The time to wait before the next stream. Raises the error if there is none."""
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
        limit_seconds = self._reconnect_seconds if self._has_connected else self._connect_seconds
        if now + pause - self._failing_since > limit_seconds:
            raise error
        return pause

    def _can_overcome(self, error: CallError) -> bool:
        if isinstance(error, UnavailableError | RateLimitedError):
            return True
        if isinstance(error, UnauthenticatedError):
            # The token has expired, and the next stream gets a new one.
            return self._renews_credential and self._failures == 1
        # The connection broke in the middle of a message.
        is_broken = isinstance(error, InternalError) and not error.is_from_service
        return is_broken and self._failures == 1
