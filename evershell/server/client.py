"""A small synchronous client of WorkspaceService, for programs and for the command `cancel`.

It depends on the protos, and on no other part of this project.
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
# The maximum number of attempts of a call that may be retried.
ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 2.0
_TLS = "https://"
_OPTIONS = (
    # With gRPC's default of 1 s, a retry within the first second would fail with the last error
    # without trying to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Notices a peer that has vanished, so that a watch ends.
    ("grpc.keepalive_time_ms", 30_000),
)

_RULES: dict[str, error_pb2.ErrorRule] = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}

# The failures that a retry may overcome. Not `agent_unreachable`, because that cancellation is
# recorded.
_RETRYABLE = ("unavailable", "rate_limited")

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class WorkspaceServiceError(Exception):
    """A call has failed. The client raises no other error.

    `slug` is a member of ErrorCode. For a failure that the service did not describe, such as a
    broken connection or a deadline, it is derived from the gRPC code.

    `details` has the facts of the failure as strings. Two have other types: `fields` maps the names
    of invalid fields to descriptions, and `retry_after_seconds` is a float.

    `request_id` identifies the call in the service's log. It is empty if the call did not reach the
    service.
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
        """The HTTP status that a REST caller gets for this failure."""
        return _RULES[self.slug].http


class WorkspaceClient:
    """Calls WorkspaceService. Every method raises WorkspaceServiceError. Thread-safe.

    `address` is host:port for plain text, or https://host:port for TLS. `credentials` replace the
    system's certificates, for example with other authorities or a client certificate. If `channel`
    is passed, it is used instead of `address`, and the client does not close it.

    `timeout_seconds` limits each call, including its retries. Reads, and cancellations that name
    their task, are retried if the service is unavailable or has refused the call for its rate
    limit, after the pause that the service asks for. Other calls are not retried, because they may
    have taken effect. A repeated CancelTask without a task id could cancel the next task.
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
        """Closes the connection, which ends the calls that are in flight."""
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
        """Cancels the task, or the current task if `task_id` is empty.

        With `wait_seconds`, the call answers when the task has ended or after this time, which is
        added to the client's time limit. `force_after_seconds` is the time after which the
        iteration is interrupted.

        A failure `agent_unreachable` means that the cancellation is recorded and will be delivered.
        Its details are `intent_recorded` and `task_id`.
        """
        request = workspace_service_pb2.CancelTaskRequest(
            workspace_id=workspace_id,
            task_id=task_id,
            reason=reason,
            wait=_duration(wait_seconds),
            force_after=_duration(force_after_seconds),
        )
        limit_seconds = self._timeout_seconds + (wait_seconds or 0.0)
        return self._call(self._stub.CancelTask, request, limit_seconds, retry=bool(task_id))

    def submit_task(
        self,
        workspace_id: str,
        description: str,
        *,
        metadata: Mapping[str, str] | None = None,
        max_iterations: int = 0,
    ) -> workspace_service_pb2.SubmitTaskResponse:
        """Submits a task. With 0 for `max_iterations`, the service's default applies."""
        request = workspace_service_pb2.SubmitTaskRequest(
            workspace_id=workspace_id,
            description=description,
            metadata=metadata,
            max_iterations=max_iterations,
        )
        return self._call(self._stub.SubmitTask, request, self._timeout_seconds)

    def get_task(self, workspace_id: str, task_id: str) -> task_pb2.Task:
        """The current state of the task."""
        request = workspace_service_pb2.GetTaskRequest(workspace_id=workspace_id, task_id=task_id)
        return self._call(self._stub.GetTask, request, self._timeout_seconds, retry=True)

    def list_tasks(self, workspace_id: str, page_size: int = 0) -> Iterator[task_pb2.Task]:
        """All tasks of the workspace, newest first. Fetches each page when it is needed."""
        page_token = ""
        while True:
            request = workspace_service_pb2.ListTasksRequest(
                workspace_id=workspace_id, page_size=page_size, page_token=page_token
            )
            page = self._call(self._stub.ListTasks, request, self._timeout_seconds, retry=True)
            yield from page.tasks
            if not page.next_page_token:
                return
            page_token = page.next_page_token

    def watch_events(
        self, workspace_id: str, after: int = 0, timeout_seconds: float | None = None
    ) -> Generator[event_pb2.Event, None, None]:
        """Yields the events of the workspace after the `seq` in `after`, and waits for new ones.

        Does not end by itself, except with `deadline_exceeded` after `timeout_seconds`. Closing the
        iterator ends the call. To resume after a failure, pass the last `seq` that was received.
        """
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=workspace_id, after=after)
        call = self._stub.WatchEvents(request, timeout=timeout_seconds, metadata=self._metadata)
        try:
            for message in call:
                if message.HasField("error"):
                    raise _from_stream_error(message.error)
                if message.HasField("event"):
                    yield message.event
        except grpc.RpcError as error:
            raise _from_rpc_error(error) from error
        finally:
            call.cancel()

    def create_workspace(self, name: str = "") -> workspace_pb2.Workspace:
        """Creates a workspace, which is `provisioning` at first."""
        request = workspace_service_pb2.CreateWorkspaceRequest(name=name)
        return self._call(self._stub.CreateWorkspace, request, self._timeout_seconds)

    def get_workspace(self, workspace_id: str) -> workspace_pb2.Workspace:
        """The current state of the workspace."""
        request = workspace_service_pb2.GetWorkspaceRequest(workspace_id=workspace_id)
        return self._call(self._stub.GetWorkspace, request, self._timeout_seconds, retry=True)

    def stop_workspace(self, workspace_id: str) -> workspace_pb2.Workspace:
        """Stops the workspace and its agent, and cancels the current task."""
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
        retry: bool = False,
    ) -> Reply:
        deadline = self._monotonic() + limit_seconds

        def attempt() -> Reply:
            try:
                return rpc(request, timeout=deadline - self._monotonic(), metadata=self._metadata)
            except grpc.RpcError as error:
                raise _from_rpc_error(error) from error

        if not retry:
            return attempt()
        attempts = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, WorkspaceServiceError) and error.slug in _RETRYABLE
            ),
            stop=lambda state: (
                stop_after_attempt(ATTEMPTS)(state)
                or self._monotonic() + state.upcoming_sleep >= deadline
            ),
            wait=_pause_seconds,
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(attempt)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel to host:port in plain text, or to https://host:port with TLS.

    Without `credentials`, TLS uses the system's certificates.
    """
    if address.startswith(_TLS):
        target = address.removeprefix(_TLS).rstrip("/")
        return grpc.secure_channel(
            target, credentials or grpc.ssl_channel_credentials(), options=_OPTIONS
        )
    return grpc.insecure_channel(address.removeprefix("http://").rstrip("/"), options=_OPTIONS)


_backoff = wait_random_exponential(multiplier=_FIRST_BACKOFF_SECONDS, max=_MAX_BACKOFF_SECONDS)


def _pause_seconds(state: RetryCallState) -> float:
    """The pause that the service asked for, else an exponential backoff with jitter."""
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


def _from_rpc_error(error: grpc.RpcError) -> WorkspaceServiceError:
    """The failure that the details of the status describe, else one from the gRPC code."""
    assert isinstance(error, grpc.Call)
    # `from_call` raises if a proxy has replaced the code or the text of the service's status.
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
    # Unpack returns False and changes nothing if the detail has another type.
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
    # A newer service may have slugs that this client does not know.
    return WorkspaceServiceError(
        slug if slug in _RULES else _slug_of(code),
        status.message,
        request.request_id or request_id,
        details,
    )


def _from_stream_error(error: error_pb2.Error) -> WorkspaceServiceError:
    slugs = {
        value.number: value.name
        for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
        if value.number
    }
    return WorkspaceServiceError(
        slugs.get(error.code, "internal"),
        error.message,
        error.request_id,
        MessageToDict(error.details),
    )


def _slug_of(code: grpc.StatusCode) -> str:
    """The slug with the name of the gRPC code, else the fallback slug of the code."""
    if code.name.lower() in _RULES:
        return code.name.lower()
    return next(
        (slug for slug, rule in _RULES.items() if rule.grpc == code.value[0] and rule.fallback),
        "internal",
    )
