"""A small synchronous client of WorkspaceService, for programs and for the command `cancel`. It
knows the protos alone.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from evershell.workspace.v1 import (
    error_pb2,
    event_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

DEFAULT_TIMEOUT_SECONDS = 10.0
# A call that may be retried is made this many times at most.
ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 2.0
_TLS = "https://"
_OPTIONS = (
    # Else a retry within the first second would only be told of the last failure, without trying to
    # connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that vanished is noticed, so that a watch ends.
    ("grpc.keepalive_time_ms", 30_000),
)

_RULES: dict[str, error_pb2.ErrorRule] = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}

# What passes by itself. Not `agent_unreachable`: that cancellation is recorded.
_TRY_AGAIN = ("unavailable", "rate_limited")

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class WorkspaceServiceError(Exception):
    """A call has failed; the one error that the client raises for it.

    `slug` is a member of ErrorCode; for a failure that the service did not describe (no connection,
    a deadline) it is derived from the gRPC code. `details` are the facts that the failure came
    with, as strings, beside `fields` (field name → what is wrong with it) and `retry_after_seconds`
    (float). `request_id` finds the call in the service's log; empty when it never got there.
    """

    def __init__(
        self,
        slug: str,
        message: str,
        request_id: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{slug}: {message}")
        self.slug = slug
        self.message = message
        self.request_id = request_id
        self.details: Mapping[str, Any] = details or {}

    @property
    def http_status(self) -> int:
        """What a REST caller would have got."""
        return _RULES[self.slug].http


class WorkspaceClient:
    """Calls WorkspaceService. Every method raises WorkspaceServiceError.

    `address` is host:port, in plain text, or https://host:port. `credentials` are for the latter,
    where the system's certificates are not enough: authorities of one's own, a client certificate.
    A channel that is passed is used instead and not closed. `timeout_seconds` limits each call, all
    its attempts together. Reads, and a cancellation that names its task, are repeated when the
    service is unavailable or has had too many calls, not before the time that it names; no other
    call is, since it may have taken effect, and a CancelTask without a task id could meet the next
    task. Safe for use by several threads.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        channel: grpc.Channel | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel = open_channel(address, credentials) if channel is None else channel
        self._owns_channel = channel is None
        self._stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and with it the calls in hand."""
        if self._owns_channel:
            self._channel.close()

    def cancel_task(
        self,
        workspace_id: str,
        task_id: str = "",
        reason: str = "",
        wait_seconds: float | None = None,
        force_after_seconds: float | None = None,
    ) -> workspace_service_pb2.CancelTaskResponse:
        """Cancels the task, or whichever runs; `wait_seconds` comes on top of the client's time
        limit.

        `agent_unreachable` means that the cancellation is recorded and will be delivered: see
        details `intent_recorded`, `task_id`.
        """
        request = workspace_service_pb2.CancelTaskRequest(
            workspace_id=workspace_id,
            task_id=task_id,
            reason=reason,
            wait=_duration(wait_seconds),
            force_after=_duration(force_after_seconds),
        )
        limit_seconds = self._timeout_seconds + (wait_seconds or 0.0)
        return self._call(self._stub.CancelTask, request, limit_seconds, repeatable=bool(task_id))

    def submit_task(
        self,
        workspace_id: str,
        description: str,
        *,
        metadata: Mapping[str, str] | None = None,
        max_iterations: int = 0,
    ) -> workspace_service_pb2.SubmitTaskResponse:
        """Gives the agent a task; 0 iterations: the service's default."""
        request = workspace_service_pb2.SubmitTaskRequest(
            workspace_id=workspace_id,
            description=description,
            metadata=metadata,
            max_iterations=max_iterations,
        )
        return self._call(self._stub.SubmitTask, request, self._timeout_seconds)

    def get_task(self, workspace_id: str, task_id: str) -> task_pb2.Task:
        """The task as it stands."""
        request = workspace_service_pb2.GetTaskRequest(workspace_id=workspace_id, task_id=task_id)
        return self._call(self._stub.GetTask, request, self._timeout_seconds, repeatable=True)

    def list_tasks(self, workspace_id: str, page_size: int = 0) -> Iterator[task_pb2.Task]:
        """All tasks, newest first; a page is fetched when it is reached."""
        page_token = ""
        while True:
            request = workspace_service_pb2.ListTasksRequest(
                workspace_id=workspace_id, page_size=page_size, page_token=page_token
            )
            page = self._call(self._stub.ListTasks, request, self._timeout_seconds, repeatable=True)
            yield from page.tasks
            if not page.next_page_token:
                return
            page_token = page.next_page_token

    def watch_events(
        self, workspace_id: str, after: int = 0, timeout_seconds: float | None = None
    ) -> Generator[event_pb2.Event, None, None]:
        """Follows the log behind the `seq` given: without an end, unless there is a time limit
        (`deadline_exceeded`).

        Closing the iterator ends the call. After a failure, go on behind the last `seq` that was
        seen.
        """
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=workspace_id, after=after)
        call = self._stub.WatchEvents(request, timeout=timeout_seconds, metadata=self._metadata)
        try:
            for message in call:
                if message.HasField("error"):
                    raise _told_in_stream(message.error)
                if message.HasField("event"):
                    yield message.event
        except grpc.RpcError as error:
            raise _described(error) from error
        finally:
            call.cancel()

    def create_workspace(self, name: str = "") -> workspace_pb2.Workspace:
        """Makes a workspace, which is `provisioning` at first."""
        request = workspace_service_pb2.CreateWorkspaceRequest(name=name)
        return self._call(self._stub.CreateWorkspace, request, self._timeout_seconds)

    def get_workspace(self, workspace_id: str) -> workspace_pb2.Workspace:
        """The workspace as it stands."""
        request = workspace_service_pb2.GetWorkspaceRequest(workspace_id=workspace_id)
        return self._call(self._stub.GetWorkspace, request, self._timeout_seconds, repeatable=True)

    def stop_workspace(self, workspace_id: str) -> workspace_pb2.Workspace:
        """Ends the workspace's agent; a task that runs is cancelled."""
        request = workspace_service_pb2.StopWorkspaceRequest(workspace_id=workspace_id)
        return self._call(self._stub.StopWorkspace, request, self._timeout_seconds)

    def resume_workspace(self, workspace_id: str) -> workspace_pb2.Workspace:
        """Starts the agent of a stopped or failed workspace again."""
        request = workspace_service_pb2.ResumeWorkspaceRequest(workspace_id=workspace_id)
        return self._call(self._stub.ResumeWorkspace, request, self._timeout_seconds)

    def _call(
        self,
        rpc: "grpc.UnaryUnaryMultiCallable[Request, Reply]",
        request: Request,
        limit_seconds: float,
        *,
        repeatable: bool = False,
    ) -> Reply:
        deadline = self._monotonic() + limit_seconds

        def attempt() -> Reply:
            try:
                return rpc(request, timeout=deadline - self._monotonic(), metadata=self._metadata)
            except grpc.RpcError as error:
                raise _described(error) from error

        if not repeatable:
            return attempt()
        attempts = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, WorkspaceServiceError) and error.slug in _TRY_AGAIN
            ),
            stop=lambda state: (
                stop_after_attempt(ATTEMPTS)(state)
                or self._monotonic() + state.upcoming_sleep >= deadline  # no time for another
            ),
            wait=_pause_seconds,
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(attempt)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to host:port in plain text, or to https://host:port with these credentials, else
    the system's certificates.
    """
    if address.startswith(_TLS):
        target = address.removeprefix(_TLS).rstrip("/")
        return grpc.secure_channel(
            target, credentials or grpc.ssl_channel_credentials(), options=_OPTIONS
        )
    return grpc.insecure_channel(address.removeprefix("http://").rstrip("/"), options=_OPTIONS)


_backoff = wait_random_exponential(multiplier=_FIRST_BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS)


def _pause_seconds(state: RetryCallState) -> float:
    """As long as the service asked for; else it grows, and differs between clients."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, WorkspaceServiceError)
    asked = error.details.get("retry_after_seconds")
    return _backoff(state) if asked is None else float(asked)


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def _described(error: grpc.RpcError) -> WorkspaceServiceError:
    """What has failed, from the status's details where there are any."""
    assert isinstance(error, grpc.Call)
    # What lies between may put another text or code in the place of the service's: the code then
    # tells what this caller got.
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    trailers = dict(error.trailing_metadata() or ())
    request_id = str(trailers.get("x-request-id", ""))
    if status is None:
        return WorkspaceServiceError(
            _slug_of(error.code()), error.details() or "The connection broke.", request_id
        )
    return _from_status(status, error.code(), request_id)


def _from_status(
    status: status_pb2.Status, code: grpc.StatusCode, request_id: str
) -> WorkspaceServiceError:
    info, request, bad = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RequestInfo(),
        error_details_pb2.BadRequest(),
    )
    retry = error_details_pb2.RetryInfo()
    # Unpack answers False and changes nothing when the detail is of another type.
    for detail in status.details:
        any(detail.Unpack(known) for known in (info, request, bad, retry))
    slug = info.reason.lower()
    details: dict[str, Any] = dict(info.metadata)
    if bad.field_violations:
        details["fields"] = {
            violation.field: violation.description for violation in bad.field_violations
        }
    if retry.HasField("retry_delay"):
        details["retry_after_seconds"] = retry.retry_delay.ToMilliseconds() / 1000
    # A service newer than this client may have a slug that this one does not know.
    return WorkspaceServiceError(
        slug if slug in _RULES else _slug_of(code),
        status.message,
        request.request_id or request_id,
        details,
    )


def _told_in_stream(error: error_pb2.Error) -> WorkspaceServiceError:
    known = {
        value.number: value.name
        for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
        if value.number
    }
    return WorkspaceServiceError(
        known.get(error.code, "internal"),
        error.message,
        error.request_id,
        MessageToDict(error.details),
    )


def _slug_of(code: grpc.StatusCode) -> str:
    """The slug for a bare gRPC code: of the same name, else its fallback."""
    if code.name.lower() in _RULES:
        return code.name.lower()
    return next(
        (slug for slug, rule in _RULES.items() if rule.grpc == code.value[0] and rule.fallback),
        "internal",
    )
