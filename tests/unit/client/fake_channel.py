"""A fake service, based on the fake channel and the fake clock of grpcio-testing."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import grpc
import grpc_testing
from evershell.workspace.v1 import workspace_service_pb2
from evershell.workspace.v1.workspace_service_pb2_grpc import WorkspaceServiceStub
from google.protobuf.message_factory import GetMessageClass

from evershell.api.status import rich_status
from evershell.client import CallError, Client, EvershellError
from evershell.core.errors import Failure

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
TIMEOUT_SECONDS = 10.0
CODES = {code.value[0]: code for code in grpc.StatusCode}


class TimedChannel:
    """Wraps the fake channel to record the timeouts of calls, which the channel itself does not."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.timeouts: list[float | None] = []

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Timed(self._channel.unary_unary(*arguments, **options), self.timeouts)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Timed(self._channel.unary_stream(*arguments, **options), self.timeouts)


class _Timed:
    def __init__(self, call: Any, timeouts: list[float | None]) -> None:
        self._call = call
        self._timeouts = timeouts

    def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
        self._timeouts.append(timeout)
        return self._call(request, timeout=timeout, metadata=tuple(metadata))

    def with_call(self, request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
        self._timeouts.append(timeout)
        return self._call.with_call(request, timeout=timeout, metadata=tuple(metadata))


class Service:
    """A client and its fake service, whose answers the test supplies."""

    def __init__(self, credential: str | Callable[[], str] = "sk_secret") -> None:
        self.clock = grpc_testing.strict_fake_time(0)
        self._fake = grpc_testing.channel([SERVICE], self.clock)
        self.channel = TimedChannel(self._fake)
        self.metadata: dict[str, str] = {}
        self.client = Client("127.0.0.1:1", credential, timeout=TIMEOUT_SECONDS)
        channel = cast("grpc.Channel", self.channel)
        self.client._transport._stub = WorkspaceServiceStub(channel)
        self.client._monotonic = self.clock.time
        self.client._sleep = self.clock.sleep_for

    def take(self, rpc: str) -> "tuple[Any, PendingCall]":
        """Takes the next call of the RPC. Returns its request, and a handle to answer it."""
        metadata, request, taken = self._fake.take_unary_unary(SERVICE.methods_by_name[rpc])
        self.metadata = dict(metadata)
        return request, PendingCall(taken)

    def take_stream(self, rpc: str = "WatchEvents") -> "tuple[Any, PendingCall]":
        metadata, request, taken = self._fake.take_unary_stream(SERVICE.methods_by_name[rpc])
        self.metadata = dict(metadata)
        return request, PendingCall(
            taken, GetMessageClass(SERVICE.methods_by_name[rpc].output_type)
        )


class PendingCall:
    """A call that waits until the test answers it."""

    def __init__(self, call: Any, message: Any = None) -> None:
        self._call = call
        # The class of the messages of a stream.
        self._message = message

    def answer(self, reply: Any) -> None:
        self._call.terminate(reply, (("x-request-id", "request_1"),), grpc.StatusCode.OK, "")

    def send(self, **message: Any) -> None:
        """Sends a message on a stream."""
        self._call.send_response(self._message(**message))

    def end(self) -> None:
        """Ends a stream without an error."""
        self._call.terminate((), grpc.StatusCode.OK, "")

    def await_cancelled(self) -> None:
        self._call.cancelled()

    def fail(self, failure: Failure) -> None:
        """Fails the call with details, as the service does."""
        status = rich_status(failure, "request_1")
        self._terminate(trailers(failure), CODES[status.code], failure.message)

    def fail_without_details(self, code: grpc.StatusCode, *trailers: tuple[str, Any]) -> None:
        """Fails the call without details, as a proxy or a broken connection does."""
        self._terminate(trailers, code, "it broke")

    def _terminate(self, trailers: Any, code: grpc.StatusCode, message: str) -> None:
        if hasattr(self._call, "send_response"):
            self._call.terminate(trailers, code, message)
        else:
            self._call.terminate(None, trailers, code, message)


def trailers(failure: Failure) -> tuple[tuple[str, Any], ...]:
    return ("grpc-status-details-bin", rich_status(failure, "request_1").SerializeToString()), (
        "x-request-id",
        "request_1",
    )


def start(call: Callable[..., Any], *arguments: Any, **fields: Any) -> "Future[Any]":
    """Makes a call in a thread, while the test acts as the service.

    The thread is a daemon, so that a call without an answer does not keep the process from exiting.
    """
    made: Future[Any] = Future()

    def run() -> None:
        try:
            made.set_result(call(*arguments, **fields))
        except (EvershellError, StopIteration) as error:
            made.set_exception(RuntimeError() if isinstance(error, StopIteration) else error)

    threading.Thread(target=run, daemon=True).start()
    return made


def failed(call: "Future[Any]") -> CallError:
    error = call.exception(5)
    assert isinstance(error, CallError), error
    return error
