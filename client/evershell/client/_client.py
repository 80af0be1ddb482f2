"""The synchronous client: how it makes calls. `_tasks.py`, `_workspaces.py` and `_emergency.py` say
which.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc

from evershell.client._attempts import Attempts
from evershell.client._base import BaseClient, log_failure
from evershell.client._calls import Call
from evershell.client._credential import Credential
from evershell.client._failures import from_rpc_error, metadata_of
from evershell.client._fields import Seconds
from evershell.client._idle import IdleLimit
from evershell.client._options import Options
from evershell.client._watch import IDLE_SECONDS, Watch
from evershell.client.answers import OnAnswer
from evershell.client.endpoint import Endpoint, channel_options
from evershell.client.errors import CallError, ClientClosedError, UnavailableError
from evershell.client.events import Event

T = TypeVar("T")


class Caller(BaseClient):
    """Makes the calls of the synchronous client."""

    def __init__(
        self,
        url: str | None = None,
        credential: Credential | None = None,
        *,
        insecure: bool = False,
        timeout: Seconds = 10.0,
        timeouts: Mapping[str, Seconds] | None = None,
        max_retries: int = 3,
        metadata: Mapping[str, str] | None = None,
        on_answer: OnAnswer | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        channel: grpc.Channel | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self._interceptors = interceptors
        super().__init__(
            url,
            credential,
            insecure=insecure,
            options=Options().changed(
                timeout, timeouts, max_retries, metadata=metadata, on_answer=on_answer
            ),
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            channel=channel,
        )
        intercepted = grpc.intercept_channel(self._connection.channel, *interceptors)
        self._stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(intercepted)
        self._sleep: Callable[[float], None] = time.sleep
        self._idle_seconds = IDLE_SECONDS

    def with_options(
        self,
        *,
        credential: Credential | None = None,
        timeout: Seconds | None = None,
        timeouts: Mapping[str, Seconds] | None = None,
        max_retries: int | None = None,
        traceparent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_answer: OnAnswer | None = None,
    ) -> Self:
        """A client with other options. It shares the connection, and ends with it.

        Args:
            credential: The credential of its calls.
            timeout: The limit of each call with its retries, in seconds or as a timedelta. It
                replaces `timeouts` of the client, too.
            timeouts: The same for single methods, by name: `{"CancelTask": 2}`.
            max_retries: How often a call that may be repeated is repeated; 0 for never.
            traceparent: The W3C trace context of its calls. Without it, a call belongs to the
                current span of OpenTelemetry, if the program uses that.
            metadata: Headers that are added to its calls and to those of the client, for example
                for a proxy. The service ignores names that it does not know.
            on_answer: Called with the Answer to each attempt of a call, also a failed one, except
                of `watch`: its request id and its metadata. It must not block or raise.

        Raises:
            ConfigurationError: An option is not valid.
        """
        options = self._options.changed(
            timeout, timeouts, max_retries, traceparent, metadata, on_answer
        )
        return self._with_options(credential, options)

    def close(self) -> None:
        """Closes the connection, which ends the calls that are in flight."""
        if self._connection.is_owned and not self._connection.is_closed:
            self._connection.is_closed = True
            self._connection.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_channel(
        self, endpoint: Endpoint, tls: grpc.ChannelCredentials | None
    ) -> grpc.Channel:
        options = channel_options(endpoint)
        if tls is None:
            return grpc.insecure_channel(endpoint.target, options=options)
        return grpc.secure_channel(endpoint.target, tls, options=options)

    def _headers(self, more: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
        found: Any = self._credential
        return self._metadata(found() if callable(found) else found, more)

    def _call(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        while True:
            try:
                return self._attempt(call, attempts)
            except CallError as error:
                pause_seconds = attempts.pause_seconds(error)
                log_failure(call.rpc, error, pause_seconds)
            self._sleep(pause_seconds)

    def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        # The time that the credential takes is a part of the timeout.
        began, headers = self._monotonic(), self._headers(call.headers)
        timeout = attempts.remaining_seconds()
        try:
            response, done = getattr(self._stub, call.rpc).with_call(
                call.request, timeout=timeout, metadata=headers
            )
        except (grpc.RpcError, ValueError) as error:
            failure = self._failure(error)
            self._answered(call.rpc, began, metadata_of(error), failure)
            raise failure from error
        metadata = (done.initial_metadata(), done.trailing_metadata())
        request_id = self._answered(call.rpc, began, metadata)
        return call.decode(response, request_id)

    def _failure(self, error: grpc.RpcError | ValueError) -> Exception:
        # gRPC raises a ValueError if its channel is closed.
        if self._connection.is_closed:
            return ClientClosedError("The client is closed.")
        return from_rpc_error(error) if isinstance(error, grpc.RpcError) else error

    def _events(self, watch: Watch) -> Generator[Event, None, None]:
        while True:
            try:
                yield from self._stream(watch)
                if watch.is_over:
                    return
                raise UnavailableError("The stream of events has ended.", is_from_service=False)
            except CallError as error:
                pause_seconds = watch.pause_seconds(error)
                log_failure("WatchEvents", error, pause_seconds)
            self._sleep(pause_seconds)

    def _stream(self, watch: Watch) -> Generator[Event, None, None]:
        headers = self._headers()
        try:
            call = self._stub.WatchEvents(
                watch.request(), timeout=watch.remaining_seconds(), metadata=headers
            )
        except ValueError as error:
            raise self._failure(error) from error
        idle = IdleLimit(call.cancel, self._idle_seconds)
        try:
            while True:
                with idle.waiting():
                    message = next(call, None)
                if message is None:
                    return
                event = watch.receive(message)
                if event is not None:
                    yield event
                if watch.is_over:
                    return
        except grpc.RpcError as error:
            if idle.has_passed:
                raise UnavailableError(
                    "Nothing arrived on the stream of events.", is_from_service=False
                ) from error
            raise self._failure(error) from error
        finally:
            idle.close()
            call.cancel()
