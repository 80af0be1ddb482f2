"""A fake of the service, with the fake channel and the fake clock of grpcio-testing."""

from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc_testing
from evershell.workspace.v1 import workspace_service_pb2

from evershell.server.api.status import rich_status
from evershell.server.client import WorkspaceClient
from evershell.server.core.errors import Failure

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
TIMEOUT_SECONDS = 10.0
CODES = {code.value[0]: code for code in grpc.StatusCode}


class TimedChannel:
    """Wraps the fake channel to record the timeouts of calls, which the fake does not."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.timeouts: list[float | None] = []

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._timed(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._timed(self._channel.unary_stream(*arguments, **options))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            self.timeouts.append(timeout)
            return call(request, timeout=timeout, metadata=metadata)

        return timed


class Service:
    """A client, and the service that a test acts as."""

    def __init__(self) -> None:
        self.clock = grpc_testing.strict_fake_time(0)
        self._fake = grpc_testing.channel([SERVICE], self.clock)
        self.channel = TimedChannel(self._fake)
        self.client = WorkspaceClient(
            "",
            "sk_secret",
            channel=cast("grpc.Channel", self.channel),
            timeout_seconds=TIMEOUT_SECONDS,
            monotonic=self.clock.time,
            sleep=self.clock.sleep_for,
        )

    def take(self, rpc: str) -> "tuple[Any, PendingCall]":
        """The next call of the RPC: its request and its handle. Checks its credential."""
        metadata, request, taken = self._fake.take_unary_unary(SERVICE.methods_by_name[rpc])
        assert ("authorization", "Bearer sk_secret") in metadata
        return request, PendingCall(taken)

    def take_stream(self) -> tuple[Any, Any]:
        metadata, request, taken = self._fake.take_unary_stream(
            SERVICE.methods_by_name["WatchEvents"]
        )
        assert ("authorization", "Bearer sk_secret") in metadata
        return request, taken


class PendingCall:
    """A call that waits for the test's answer."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def answer(self, reply: Any) -> None:
        self._call.terminate(reply, (), grpc.StatusCode.OK, "")

    def fail(self, failure: Failure) -> None:
        """Fails the call as the service does, with details."""
        status = rich_status(failure, "request_1")
        self._call.terminate(None, trailers(failure), CODES[status.code], failure.message)

    def fail_without_details(self, code: grpc.StatusCode, *trailers: tuple[str, Any]) -> None:
        """Fails the call as a proxy or a broken connection does, without details."""
        self._call.terminate(None, trailers, code, "it broke")


def trailers(failure: Failure) -> tuple[tuple[str, Any], ...]:
    return ("grpc-status-details-bin", rich_status(failure, "request_1").SerializeToString()), (
        "x-request-id",
        "request_1",
    )
