"""Makes calls continuously, over different kinds of connections, and records the results."""

import json
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, Protocol

import grpc
import httpx
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from google.protobuf.json_format import MessageToDict, ParseDict

from tests.support.service import Service, ServiceWorkspace
from tests.support.waiting import LIMIT_SECONDS
from tests.support.wires import (
    OVERLOADED,
    OVERLOADED_SECONDS,
    Failed,
    read_failure,
    rest_failure,
)

_CALL_SECONDS = 20.0
_JOIN_SECONDS = 30.0


class UnreadError(Exception):
    """The client's HTTP/2 library closed a connection on GOAWAY and dropped a response.

    RFC 9113, section 6.8, lets a server complete open streams after it sends GOAWAY. The library
    that httpx uses closes the connection instead. The access log of the edge records whether the
    response was sent. The exception text is the user agent of the call.
    """


class OverloadedError(Exception):
    """A worker refused the call because the machine of the test is too busy."""


class RecordedError(Exception):
    """The agent did not answer in time. The cancellation is recorded, and is delivered later."""


class UndeliveredError(Exception):
    """The agent did not accept the task in time. The task has ended `delivery_failed`."""


class Caller(Protocol):
    """Makes calls over one kind of connection.

    If a call fails, raises UnreadError, OverloadedError, RecordedError, UndeliveredError or any
    other exception.
    """

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        """Makes a call and returns the response."""

    def watch(self, workspace_id: str, after: int) -> Iterator[dict[str, Any]]:
        """Yields the messages of one stream until the stream ends."""


@dataclass(slots=True)
class Outcomes:
    """The results of all calls."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    # User agents of the calls whose responses the client library dropped.
    unread: list[str] = field(default_factory=list)
    streams: int = 0
    overloaded: int = 0
    recorded: int = 0
    slowest_seconds: float = 0.0

    def __str__(self) -> str:
        total = sum(self.calls.values())
        return (
            f"{total} calls {dict(self.calls)}, {self.streams} streams, "
            f"{len(self.failures)} failed, {len(self.unread)} not read by the client's library, "
            f"{self.overloaded} refused by a busy worker, "
            f"{self.recorded} recorded without an answer of the agent, "
            f"slowest {self.slowest_seconds:.2f} s"
        )


class RestCaller:
    """Makes calls over REST."""

    _paths: ClassVar = {
        "GetTask": ("GET", "/v1/workspaces/{workspace_id}/tasks/{task_id}", 200),
        "GetWorkspace": ("GET", "/v1/workspaces/{workspace_id}", 200),
        "SubmitTask": ("POST", "/v1/workspaces/{workspace_id}/tasks", 202),
        "CancelTask": ("POST", "/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel", 202),
    }
    _serial = count()

    def __init__(
        self,
        service: Service,
        *,
        token: str = "full_access",
        http2: bool = False,
        keeps_connection: bool = True,
    ) -> None:
        self._service = service
        self._token = token
        self._http2 = http2
        self._keeps_connection = keeps_connection
        self._client = self._connected()
        service.closes(lambda: self._client.close())

    def _connected(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self._service.tokens[self._token]}"}
        url = self._service.ready["rest_url"]
        return httpx.Client(
            base_url=url,
            headers=headers,
            timeout=_CALL_SECONDS,
            http1=not self._http2,
            http2=self._http2,
        )

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        method, path, status = self._paths[rpc]
        body = {name: value for name, value in fields.items() if f"{{{name}}}" not in path}
        with self._answered() as headers:
            arguments: dict[str, Any] = {"json": body} if method == "POST" else {}
            response = self._client.request(
                method, path.format(**fields), headers=headers, **arguments
            )
            if response.status_code == 503 and OVERLOADED in response.text:
                raise OverloadedError
            if response.status_code == 503:
                _raise_known(rpc, rest_failure(response))
            assert response.status_code in (status, 200), (
                f"{rpc}: {response.status_code} {response.text}"
            )
            answer: dict[str, Any] = response.json()
            return answer

    def watch(self, workspace_id: str, after: int) -> Iterator[dict[str, Any]]:
        path = f"/v1/workspaces/{workspace_id}/events"
        with (
            self._answered() as headers,
            self._client.stream("GET", path, params={"after": after}, headers=headers) as response,
        ):
            if response.status_code != 200:
                text = response.read().decode()
                if response.status_code == 503 and OVERLOADED in text:
                    raise OverloadedError
                raise AssertionError(f"WatchEvents: {response.status_code} {text}")
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
                elif line.startswith(":"):
                    # Comments are heartbeats. They let the watcher check whether the load has
                    # stopped.
                    yield {}

    @contextmanager
    def _answered(self) -> Iterator[dict[str, str]]:
        name = f"load-{next(self._serial)}."
        try:
            yield {"user-agent": name}
        except (httpx.LocalProtocolError, httpx.RemoteProtocolError) as error:
            # For data after GOAWAY, h2 raises an error with the first text. For GOAWAY itself,
            # httpcore raises an error with the second text.
            if self._http2 and (
                "ConnectionState.CLOSED" in str(error)
                or "ConnectionTerminated error_code:0" in str(error)
            ):
                raise UnreadError(name) from error
            raise
        finally:
            if not self._keeps_connection:
                self._client.close()
                self._client = self._connected()


class GrpcCaller:
    """Makes calls over gRPC."""

    def __init__(
        self, service: Service, *, token: str = "full_access", keeps_connection: bool = True
    ) -> None:
        self._service = service
        service.closes(lambda: self._channel.close())
        self._keeps_connection = keeps_connection
        self._metadata = (("authorization", f"Bearer {service.tokens[token]}"),)
        self._connect()

    def _connect(self) -> None:
        # Without this option, gRPC shares a connection between the channels of a process.
        self._channel = grpc.insecure_channel(
            self._service.ready["grpc_addr"], options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        request = ParseDict(fields, getattr(workspace_service_pb2, f"{rpc}Request")())
        with _known_errors(rpc):
            reply = getattr(self._stub, rpc)(
                request, metadata=self._metadata, timeout=_CALL_SECONDS
            )
        if not self._keeps_connection:
            self._channel.close()
            self._connect()
        return MessageToDict(
            reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def watch(self, workspace_id: str, after: int) -> Iterator[dict[str, Any]]:
        request = workspace_service_pb2.WatchEventsRequest(workspace_id=workspace_id, after=after)
        told = False
        try:
            with _known_errors("WatchEvents"):
                for message in self._stub.WatchEvents(request, metadata=self._metadata):
                    told = message.HasField("error")
                    yield MessageToDict(message, preserving_proto_field_name=True)
        except grpc.RpcError:
            # If the last message contained an error, the stream then ends with this error.
            if not told:
                raise


@contextmanager
def _known_errors(rpc: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if OVERLOADED in str(error):
            raise OverloadedError from error
        _raise_known(rpc, read_failure(error))
        raise


def _raise_known(rpc: str, failed: Failed) -> None:
    """Raises UndeliveredError or RecordedError if the agent did not answer in time."""
    if failed.slug == "agent_unreachable":
        if rpc == "SubmitTask":
            raise UndeliveredError
        # Over gRPC, the details are in the metadata of ErrorInfo.
        details = failed.details.get("ErrorInfo", {}).get("metadata", failed.details)
        if details.get("intent_recorded") in (True, "true"):
            raise RecordedError


class Load:
    """Runs each caller in its own thread until `stop` is called."""

    def __init__(self, pause_seconds: float) -> None:
        """Sets the pause before each call.

        The pause leaves processor time for the programs under test.
        """
        self._pause_seconds = pause_seconds
        self.outcomes = Outcomes()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, what: str, step: Callable[[], None]) -> None:
        """Repeats the step in a thread. An exception in a step is recorded as a failure."""
        self._start(what, lambda: self._repeat(what, step))

    def watch(self, what: str, caller: Caller, workspace: ServiceWorkspace) -> None:
        """Reads the event log in a thread and opens a new stream when one ends.

        After `stop` is called, the thread reads to the end of the log and exits.
        """
        self._start(what, lambda: self._watch(what, caller, workspace))

    def call(self, what: str, caller: Caller, rpc: str, **fields: Any) -> dict[str, Any] | None:
        """Makes a call and records its result.

        A call that a busy worker refuses has had no effect. It is repeated after
        OVERLOADED_SECONDS, until LIMIT_SECONDS have passed. Returns None if the client library
        dropped the response.
        """
        time.sleep(self._pause_seconds)
        began = time.monotonic()
        try:
            while True:
                try:
                    return caller.call(rpc, **fields)
                except OverloadedError:
                    if time.monotonic() - began > LIMIT_SECONDS:
                        raise
                    self._note_overload()
        except RecordedError:
            with self._lock:
                self.outcomes.recorded += 1
            raise
        except UnreadError as error:
            self.outcomes.unread.append(str(error))
            return None
        finally:
            with self._lock:
                self.outcomes.calls[what] += 1
                self.outcomes.slowest_seconds = max(
                    self.outcomes.slowest_seconds, time.monotonic() - began
                )

    def _note_overload(self) -> None:
        with self._lock:
            self.outcomes.overloaded += 1
        time.sleep(OVERLOADED_SECONDS)

    def stop(self) -> None:
        """Stops the callers and waits until their threads exit."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                self.outcomes.failures.append(f"{thread.name} does not end")

    def _start(self, what: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, what: str, step: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                step()
            except Exception:  # noqa: BLE001 - any exception is a failed call
                self.outcomes.failures.append(f"{time.time():.3f} {what}: {traceback.format_exc()}")

    def _watch(self, what: str, caller: Caller, workspace: ServiceWorkspace) -> None:
        seq = 0

        def is_over() -> bool:
            return self._stopping.is_set() and seq >= workspace.log()[-1]["seq"]

        while not is_over():
            self.outcomes.streams += 1
            message: dict[str, Any] = {}
            try:
                for message in caller.watch(workspace.id, seq):
                    if "event" in message:
                        assert int(message["event"]["seq"]) == seq + 1, f"{message} behind {seq}"
                        seq += 1
                    if is_over():
                        return
                assert message.get("error", {}).get("code") == "unavailable", (
                    f"the stream ended with {message}"
                )
                assert f"after={seq}" in message["error"]["message"]
            except UnreadError as error:
                self.outcomes.unread.append(str(error))
            except OverloadedError:
                self._note_overload()
            except Exception:  # noqa: BLE001 - any exception is a failed stream
                self.outcomes.failures.append(f"{time.time():.3f} {what}: {traceback.format_exc()}")
