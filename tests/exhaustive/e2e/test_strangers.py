"""Floods that hold memory, with and without a credential, do not fail the calls of others.

Each flood prints its figures. On two otherwise idle cores, the 99th percentile of the
cancellations stays under 250 ms. The tests do not assert it, because the machine may be busy.
"""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.exhaustive.e2e.load import GrpcCaller, RestCaller
from tests.exhaustive.e2e.strangers import HELD_STREAMS, REST_CONNECTIONS, WATCHES, flooded
from tests.support.edge.clients import is_whole, parse
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# How long a flood may take until it is complete, and how long it then lasts. Envoy's memory grows
# slowly while bodies are held.
COMPLETE_SECONDS = 60.0
FLOOD_SECONDS = {"hold_messages": 3.0, "watch_health": 3.0, "hold_bodies": 7.0}
PAUSE_SECONDS = 0.04
# The limits of the growth during a flood. A worker that held each message would grow by 1,200 MiB,
# and Envoy by 1,100 MiB if it held each body.
WORKER_GROWTH_MB, ENVOY_GROWTH_MB = 100, 400


@pytest.mark.parametrize("path", ["tasks", "task/cancel"])
@pytest.mark.parametrize(
    "framing", ["content-length: 9000", "content-length: 16000", "transfer-encoding: chunked"]
)
def test_a_bad_credential_is_refused_before_the_body(
    stack: Stack, workspace: Workspace, path: str, framing: str
) -> None:
    url = urlsplit(stack.ready["rest_url"])
    head = (
        f"POST {workspace.path}/{path} HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer sk_unknown\r\n{framing}\r\n\r\n"
    )
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(head.encode())
        received = b""
        while not is_whole(received):
            part = connection.recv(65536)
            assert part, received
            received += part
    answer = parse(received)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "unauthenticated")


def test_the_health_is_listed(stack: Stack) -> None:
    with grpc.insecure_channel(stack.ready["grpc_addr"]) as channel:
        found = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10)
    assert found.statuses[""].status == health_pb2.HealthCheckResponse.SERVING


class GoodCallers:
    """Callers that cancel repeatedly, over REST and gRPC."""

    def __init__(self, stack: Stack, workspace: Workspace) -> None:
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self._stopping = threading.Event()
        task_id = workspace.submit("true")
        workspace.await_end(task_id)
        callers = (RestCaller(stack, keeps_connection=False), RestCaller(stack), GrpcCaller(stack))
        calls = [
            lambda caller=caller: caller.call(
                "CancelTask", workspace_id=workspace.id, task_id=task_id
            )
            for caller in callers
        ]
        self._threads = [threading.Thread(target=self._repeat, args=(call,)) for call in calls]

    def _repeat(self, call: Callable[[], object]) -> None:
        while not self._stopping.wait(PAUSE_SECONDS):
            began = time.perf_counter()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - each is a failure of the service
                self.failures.append(repr(error))
            self.seconds.append(time.perf_counter() - began)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Makes calls for the duration of the context."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[math.ceil(len(ordered) * share) - 1]


class Memory:
    """The memory of the edge and of the workers, and its peak."""

    def __init__(self, stack: Stack) -> None:
        children = psutil.Process(stack.pid).children()
        self._envoy = [child for child in children if child.name() == "envoy"]
        self._workers = [psutil.Process(pid) for pid in stack.pids("serve")]
        self._before = self._now()
        self._most = self._before

    def _now(self) -> tuple[int, int]:
        """The resident memory of Envoy and of the largest worker, in MiB."""
        return tuple(  # type: ignore[return-value]
            max(process.memory_info().rss for process in processes) >> 20
            for processes in (self._envoy, self._workers)
        )

    def look(self) -> None:
        self._most = tuple(map(max, self._most, self._now()))  # type: ignore[assignment]

    def grown(self) -> tuple[int, int]:
        return self._most[0] - self._before[0], self._most[1] - self._before[1]


def flood(
    stack: Stack, workspace: Workspace, kind: str, wire: str, token: str = ""
) -> dict[str, int]:
    """Runs a flood; asserts that good callers succeed and memory stays within its limits."""
    address = (
        stack.ready["grpc_addr"]
        if wire == "grpc"
        else stack.ready["rest_url"].removeprefix("http://")
    )
    good, memory = GoodCallers(stack, workspace), Memory(stack)
    with flooded(kind, address, stack.tokens.get(token, "")) as running, good.calling():

        def is_complete() -> bool:
            memory.look()
            return running.is_complete

        eventually(is_complete, COMPLETE_SECONDS)
        until = time.monotonic() + FLOOD_SECONDS[kind]
        while time.monotonic() < until:
            memory.look()
            time.sleep(0.05)
    told = running.told
    envoy, worker = memory.grown()
    print(
        f"{kind}: {len(good.seconds)} cancels, p50 {good.percentile(0.5) * 1000:.0f} ms, "
        f"p99 {good.percentile(0.99) * 1000:.0f} ms; "
        f"+{envoy} MiB Envoy, +{worker} MiB worker; {told}"
    )
    assert not good.failures
    assert envoy < ENVOY_GROWTH_MB
    assert worker < WORKER_GROWTH_MB
    return told


@pytest.mark.parametrize("token", ["", "submit_observe"], ids=["strangers", "a customer"])
def test_streams_that_hold_a_message(stack: Stack, workspace: Workspace, token: str) -> None:
    told = flood(stack, workspace, "hold_messages", "grpc", token)
    assert told["opened"] >= HELD_STREAMS


@pytest.mark.parametrize("token", ["", "submit_observe"], ids=["strangers", "a customer"])
def test_connections_that_hold_a_body(stack: Stack, workspace: Workspace, token: str) -> None:
    told = flood(stack, workspace, "hold_bodies", "rest", token)
    assert told["opened"] >= REST_CONNECTIONS


def test_watchers_of_the_health(stack: Stack, workspace: Workspace) -> None:
    told = flood(stack, workspace, "watch_health", "grpc")
    assert told["opened"] == WATCHES
    assert told["held"] < WATCHES / 100
