"""Floods, with and without a credential, do not fail the calls of others.

Each flood prints its figures. On two otherwise idle cores, the 99th percentile of the
cancellations stays under 250 ms. The tests do not assert it, because the machine may be busy.
FLOOD_SECONDS sets how long the floods of the last test last, by default 10 s.
"""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.stack.long.load import GrpcCaller, RestCaller
from tests.stack.long.strangers import (
    BAD_CREDENTIALS,
    HELD_STREAMS,
    RESETS,
    REST_CONNECTIONS,
    Flood,
    flooded,
)
from tests.support.edge.clients import is_whole, parse
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# How long a flood may take until it is complete.
COMPLETE_SECONDS = 60.0
ALL_SECONDS = float(os.environ.get("FLOOD_SECONDS", "10"))
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
    """The memory of the programs of a stack, before and at its peak, in MiB."""

    def __init__(self, stack: Stack) -> None:
        children = psutil.Process(stack.pid).children()
        self._processes = {
            f"worker {index}": psutil.Process(pid) for index, pid in enumerate(stack.pids("serve"))
        } | {child.name(): child for child in children if child.name() in ("envoy", "postgres")}
        self._before = self._now()
        self._most = self._before

    def _now(self) -> dict[str, int]:
        return {name: each.memory_info().rss >> 20 for name, each in self._processes.items()}

    def look(self) -> None:
        self._most = {name: max(self._most[name], now) for name, now in self._now().items()}

    def grown(self, program: str) -> int:
        """How much the largest of these programs has grown."""
        return max(
            most - self._before[name]
            for name, most in self._most.items()
            if name.startswith(program)
        )

    def __str__(self) -> str:
        now = self._now()
        return ", ".join(
            f"{name} {self._before[name]} -> {most} -> {now[name]} MiB"
            for name, most in self._most.items()
        )


def flood(
    stack: Stack, workspace: Workspace, kinds: dict[str, str], token: str, seconds: float
) -> dict[str, dict[str, int]]:
    """Runs floods, each over the protocol that `kinds` names for it.

    Asserts that good callers succeed and memory stays within its limits. Returns what each tells.
    """
    addresses = {
        "grpc": stack.ready["grpc_addr"],
        "rest": stack.ready["rest_url"].removeprefix("http://"),
    }
    good, memory = GoodCallers(stack, workspace), Memory(stack)
    with ExitStack() as running:
        floods: dict[str, Flood] = {
            kind: running.enter_context(flooded(kind, addresses[wire], stack.tokens.get(token, "")))
            for kind, wire in kinds.items()
        }
        running.enter_context(good.calling())

        def are_complete() -> bool:
            memory.look()
            return all(each.is_complete for each in floods.values())

        eventually(are_complete, COMPLETE_SECONDS)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            memory.look()
            time.sleep(0.05)
    told = {kind: each.told for kind, each in floods.items()}
    print(
        f"{len(good.seconds)} cancels, p50 {good.percentile(0.5) * 1000:.0f} ms, "
        f"p99 {good.percentile(0.99) * 1000:.0f} ms; {memory}; {told}"
    )
    assert not good.failures
    assert memory.grown("envoy") < ENVOY_GROWTH_MB
    assert memory.grown("worker") < WORKER_GROWTH_MB
    return told


@pytest.mark.soak
@pytest.mark.parametrize("token", ["", "submit_observe"], ids=["strangers", "a customer"])
def test_streams_that_hold_a_message(stack: Stack, workspace: Workspace, token: str) -> None:
    told = flood(stack, workspace, {"hold_messages": "grpc"}, token, 3.0)
    assert told["hold_messages"]["opened"] >= HELD_STREAMS


@pytest.mark.soak
@pytest.mark.parametrize("token", ["", "submit_observe"], ids=["strangers", "a customer"])
def test_connections_that_hold_a_body(stack: Stack, workspace: Workspace, token: str) -> None:
    # Envoy's memory grows slowly while bodies are held.
    told = flood(stack, workspace, {"hold_bodies": "rest"}, token, 7.0)
    assert told["hold_bodies"]["opened"] >= REST_CONNECTIONS


def test_resets_bad_credentials_half_messages_and_slow_bodies(
    stack: Stack, workspace: Workspace
) -> None:
    kinds = {
        "reset_over_grpc": "grpc",
        "reset_over_rest": "rest",
        "bad_credentials": "grpc",
        "hold_messages": "grpc",
        "hold_bodies": "rest",
    }
    told = flood(stack, workspace, kinds, "submit_observe", ALL_SECONDS)
    assert told["reset_over_grpc"]["opened"] >= RESETS
    assert told["reset_over_rest"]["opened"] >= RESETS
    assert told["bad_credentials"]["ended"] >= BAD_CREDENTIALS / 2
