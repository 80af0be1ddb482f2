"""The asynchronous client: how it makes calls. The other modules `_async_…` say which."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc

from evershell.client._attempts import Attempts
from evershell.client._base import BaseClient, log_failure
from evershell.client._calls import Call
from evershell.client._credential import AsyncCredential
from evershell.client._failures import from_rpc_error, metadata_of
from evershell.client._fields import Seconds
from evershell.client._options import Options
from evershell.client._watch import IDLE_SECONDS, Watch
from evershell.client.answers import OnAnswer
from evershell.client.endpoint import Endpoint, channel_options
from evershell.client.errors import (
    CallError,
    ClientClosedError,
    ConfigurationError,
    UnavailableError,
)
from evershell.client.events import Event

T = TypeVar("T")


class AsyncCaller(BaseClient):
    """Makes the calls of the asynchronous client."""

    def __init__(
        self,
        url: str | None = None,
        credential: AsyncCredential | None = None,
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
        channel: "grpc.aio.Channel | None" = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        if channel is not None and interceptors:
            raise ConfigurationError("A channel has its own interceptors.")
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
        self._stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(self._connection.channel)
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._idle_seconds = IDLE_SECONDS

    def with_options(
        self,
        *,
        credential: AsyncCredential | None = None,
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

    async def close(self) -> None:
        """Closes the connection, which ends the calls that are in flight."""
        if self._connection.is_owned and not self._connection.is_closed:
            self._connection.is_closed = True
            await self._connection.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _open_channel(self, endpoint: Endpoint, tls: grpc.ChannelCredentials | None) -> Any:
        options, interceptors = channel_options(endpoint), list(self._interceptors)
        if tls is None:
            return grpc.aio.insecure_channel(
                endpoint.target, options=options, interceptors=interceptors
            )
        return grpc.aio.secure_channel(
            endpoint.target, tls, options=options, interceptors=interceptors
        )

    async def _headers(self, more: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
        found: Any = self._credential
        if callable(found):
            found = found()
        return self._metadata(await found if inspect.isawaitable(found) else found, more)

    async def _call(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        while True:
            try:
                return await self._attempt(call, attempts)
            except CallError as error:
                pause_seconds = attempts.pause_seconds(error)
                log_failure(call.rpc, error, pause_seconds)
            await self._sleep(pause_seconds)

    async def _attempt(self, call: Call[T], attempts: Attempts) -> T:
        # The time that the credential takes is a part of the timeout.
        began, headers = self._monotonic(), await self._headers(call.headers)
        timeout = attempts.remaining_seconds()
        try:
            made = getattr(self._stub, call.rpc)(call.request, timeout=timeout, metadata=headers)
            response = await made
            metadata = (await made.initial_metadata(), await made.trailing_metadata())
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            failure = self._failure(error)
            self._answered(call.rpc, began, metadata_of(error), failure)
            raise failure from error
        request_id = self._answered(call.rpc, began, metadata)
        return call.decode(response, request_id)

    def _failure(self, error: BaseException) -> BaseException:
        # gRPC cancels the calls of a channel that is closed. A caller may cancel its own task, too.
        task = asyncio.current_task()
        if self._connection.is_closed and not (task and task.cancelling()):
            return ClientClosedError("The client is closed.")
        return from_rpc_error(error) if isinstance(error, grpc.RpcError) else error

    async def _events(self, watch: Watch) -> AsyncGenerator[Event, None]:
        while True:
            try:
                # Closing the watch ends the stream at once.
                async with aclosing(self._stream(watch)) as events:
                    async for event in events:
                        yield event
                if watch.is_over:
                    return
                raise UnavailableError("The stream of events has ended.", is_from_service=False)
            except CallError as error:
                pause_seconds = watch.pause_seconds(error)
                log_failure("WatchEvents", error, pause_seconds)
            await self._sleep(pause_seconds)

    async def _stream(self, watch: Watch) -> AsyncGenerator[Event, None]:
        headers, call = await self._headers(), None
        try:
            call = self._stub.WatchEvents(
                watch.request(), timeout=watch.remaining_seconds(), metadata=headers
            )
            while True:
                async with asyncio.timeout(self._idle_seconds):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    return
                event = watch.receive(message)
                if event is not None:
                    yield event
                if watch.is_over:
                    return
        except TimeoutError as error:
            raise UnavailableError(
                "Nothing arrived on the stream of events.", is_from_service=False
            ) from error
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            raise self._failure(error) from error
        finally:
            if call is not None:
                call.cancel()
