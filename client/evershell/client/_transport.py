"""Sends calls and reads streams with gRPC, for the asynchronous and the synchronous client.

Only the pairs in this module, such as AsyncTransport and Transport, and the credentials in
`_options.py` are written separately for the two clients. The rest of the synchronous client is
generated from the asynchronous client: the generator replaces the first name of each pair with the
second.
"""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc
from google.protobuf.message import Message

from evershell.client._options import AsyncCredential
from evershell.client.answers import from_rpc_error
from evershell.client.endpoint import Endpoint, channel_options
from evershell.client.errors import ClientClosedError, UnavailableError

# If nothing arrives for this time, the stream is broken: without events, the service sends a
# heartbeat every 4 s.
IDLE_SECONDS = 8.0
_IDLE_CHECKS = 3

Headers = list[tuple[str, str]]


async def async_token_of(credential: AsyncCredential) -> Any:
    """The token: the credential itself, or what it returns if it is a callable.

    Awaits the token if it is an awaitable. Does not check it.
    """
    token = credential() if callable(credential) else credential
    return await token if inspect.isawaitable(token) else token


def token_of(credential: AsyncCredential) -> Any:
    """The token: the credential itself, or what it returns if it is a callable.

    Does not check the token.
    """
    return credential() if callable(credential) else credential


class AsyncTransport:
    """A channel of grpc.aio, which several clients may share."""

    # What gRPC raises if a call fails. `failure` converts it to an error of the client.
    ERRORS = (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError)

    def __init__(
        self,
        endpoint: Endpoint,
        tls: grpc.ChannelCredentials | None,
        interceptors: Sequence[Any],
    ) -> None:
        self._is_closed = False
        options, kept = channel_options(endpoint), list(interceptors)
        self._channel = (
            grpc.aio.insecure_channel(endpoint.target, options=options, interceptors=kept)
            if tls is None
            else grpc.aio.secure_channel(endpoint.target, tls, options=options, interceptors=kept)
        )
        self._stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)

    async def close(self) -> None:
        self._is_closed = True
        await self._channel.close()

    async def call(
        self, rpc: str, request: Message, timeout: float, headers: Headers
    ) -> tuple[Any, tuple[Any, ...]]:
        """The response and its metadata. Raises one of ERRORS."""
        call = getattr(self._stub, rpc)(request, timeout=timeout, metadata=headers)
        response = await call
        return response, (await call.initial_metadata(), await call.trailing_metadata())

    def stream(
        self,
        rpc: str,
        request: Message,
        timeout: float | None,
        headers: Headers,
        idle_seconds: float,
    ) -> "AsyncStream":
        """Opens a stream of events. Raises ClientClosedError."""
        try:
            call = getattr(self._stub, rpc)(request, timeout=timeout, metadata=headers)
        except self.ERRORS as error:
            raise_failure(self.failure(error), error)
        return AsyncStream(self, call, idle_seconds)

    def failure(self, error: BaseException) -> BaseException:
        """Turns one of ERRORS into an error of the client."""
        # If the channel was closed, gRPC has cancelled the call. But if the caller has cancelled
        # its own asyncio task, the caller must get the CancelledError.
        task = asyncio.current_task()
        if self._is_closed and not (task and task.cancelling()):
            return ClientClosedError("The client is closed.")
        return from_rpc_error(error) if isinstance(error, grpc.RpcError) else error

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)


class Transport:
    """A channel of gRPC, which several clients may share."""

    # gRPC raises a ValueError if the channel is closed.
    ERRORS = (grpc.RpcError, ValueError)

    def __init__(
        self,
        endpoint: Endpoint,
        tls: grpc.ChannelCredentials | None,
        interceptors: Sequence[Any],
    ) -> None:
        self._is_closed = False
        options = channel_options(endpoint)
        self._channel = (
            grpc.insecure_channel(endpoint.target, options=options)
            if tls is None
            else grpc.secure_channel(endpoint.target, tls, options=options)
        )
        intercepted = grpc.intercept_channel(self._channel, *interceptors)
        self._stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(intercepted)

    def close(self) -> None:
        self._is_closed = True
        self._channel.close()

    def call(
        self, rpc: str, request: Message, timeout: float, headers: Headers
    ) -> tuple[Any, tuple[Any, ...]]:
        """The response and its metadata. Raises one of ERRORS."""
        response, call = getattr(self._stub, rpc).with_call(
            request, timeout=timeout, metadata=headers
        )
        return response, (call.initial_metadata(), call.trailing_metadata())

    def stream(
        self,
        rpc: str,
        request: Message,
        timeout: float | None,
        headers: Headers,
        idle_seconds: float,
    ) -> "Stream":
        """Opens a stream of events. Raises ClientClosedError."""
        try:
            call = getattr(self._stub, rpc)(request, timeout=timeout, metadata=headers)
        except self.ERRORS as error:
            raise_failure(self.failure(error), error)
        return Stream(self, call, idle_seconds)

    def failure(self, error: Exception) -> Exception:
        """Turns one of ERRORS into an error of the client."""
        if self._is_closed:
            return ClientClosedError("The client is closed.")
        return from_rpc_error(error) if isinstance(error, grpc.RpcError) else error

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


class AsyncStream:
    """A stream of events. The reader must close it."""

    def __init__(self, transport: AsyncTransport, call: Any, idle_seconds: float) -> None:
        self._transport = transport
        self._call = call
        self._idle_seconds = idle_seconds

    async def read(self) -> Any:
        """The next message; None at the end of the stream.

        Raises UnavailableError if no message arrives in time, and the errors of
        `AsyncTransport.failure`.
        """
        try:
            async with asyncio.timeout(self._idle_seconds):
                message = await self._call.read()
        except TimeoutError as error:
            raise _idle_error() from error
        except self._transport.ERRORS as error:
            raise_failure(self._transport.failure(error), error)
        return None if message is grpc.aio.EOF else message

    def close(self) -> None:
        self._call.cancel()


class Stream:
    """A stream of events. The reader must close it."""

    def __init__(self, transport: Transport, call: Any, idle_seconds: float) -> None:
        self._transport = transport
        self._call = call
        self._idle = _IdleLimit(call.cancel, idle_seconds)

    def read(self) -> Any:
        """The next message; None at the end of the stream.

        Raises UnavailableError if no message arrives in time, and the errors of
        `Transport.failure`.
        """
        try:
            with self._idle.waiting():
                return next(self._call, None)
        except grpc.RpcError as error:
            if self._idle.has_passed:
                raise _idle_error() from error
            raise_failure(self._transport.failure(error), error)

    def close(self) -> None:
        self._idle.close()
        self._call.cancel()


class _IdleLimit:
    """Calls `cancel` if a reader waits longer than the limit.

    The thread that checks the limit ends after it has called `cancel`, or after `close`.
    """

    def __init__(self, cancel: Callable[[], object], limit_seconds: float) -> None:
        self._cancel = cancel
        self._limit_seconds = limit_seconds
        self._waiting_since: float | None = None
        self._closed = threading.Event()
        self.has_passed = False
        threading.Thread(target=self._check, name="evershell-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def close(self) -> None:
        self._closed.set()

    def _check(self) -> None:
        while not self._closed.wait(self._limit_seconds / _IDLE_CHECKS):
            since = self._waiting_since
            if since is not None and time.monotonic() - since >= self._limit_seconds:
                self.has_passed = True
                self._cancel()
                return


def raise_failure(failure: BaseException, error: BaseException) -> NoReturn:
    """Raises the failure. Its cause is the error, unless both are the same object."""
    if failure is error:
        raise error
    raise failure from error


def _idle_error() -> UnavailableError:
    return UnavailableError("Nothing arrived on the stream of events.", is_from_service=False)
