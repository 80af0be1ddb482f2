"""The edge stays available if callers use too many connections or streams, or too much memory."""

import socket
from contextlib import ExitStack

import httpx
import pytest

from tests.support.edge.cases import CANCEL, TASKS
from tests.support.edge.clients import is_whole, parse
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import START_SECONDS, Stub
from tests.support.lengths import smoke
from tests.support.waiting import eventually

# The limit of envoy.yaml for large bodies in flight.
LARGE_BODIES = 256
# How much of the heap is used. From RESET_PERCENT on, Envoy gives up answers that nobody reads.
MEMORY_PERCENT = "overload.envoy.resource_monitors.fixed_heap.pressure"
RESET_PERCENT = 85
# Counters of streams, and of connections without a stream, that Envoy gives up.
GIVEN_UP = (
    "envoy.overload_actions.reset_high_memory_stream.count",
    "http.rest.downstream_cx_idle_timeout",
)


def can_cancel(edge: RunningEdge) -> bool:
    answer = httpx.post(edge.rest_url + CANCEL, trust_env=False, timeout=START_SECONDS)
    return answer.status_code == 202


def connected(edge: RunningEdge, sent: bytes) -> socket.socket:
    """Opens a connection and sends bytes over it."""
    connection = socket.socket()
    # A small buffer, so that the edge must keep what the client does not read. The kernel applies
    # the size only if it is set before the connection opens.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(START_SECONDS)
    connection.connect(("127.0.0.1", edge.settings.rest_port))
    connection.sendall(sent)
    return connection


def test_idle_connections_are_closed_before_the_limit_is_reached(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    few = {"max_active_downstream_connections: 10000": "max_active_downstream_connections: 20"}
    few |= {"min_timeout: 5s": "min_timeout: 0.5s"}
    with ExitStack() as opened:
        edge = opened.enter_context(
            running_edge(short_directory(tmp_path_factory), _stub_and_address[1], replacements=few)
        )
        for _ in range(19):
            opened.enter_context(connected(edge, b""))
        # Some connections may stay open, because the timeout grows again once the first connections
        # are closed.
        eventually(lambda: edge.stat("http.rest.downstream_cx_idle_timeout") > 0, 60)
        assert can_cancel(edge)


@pytest.mark.parametrize("refresh_interval", smoke(["0.25s", "3s"], ["0.25s"]))
def test_answers_that_nobody_reads_are_given_up_when_memory_runs_out(
    _stub_and_address: tuple[Stub, str],
    tmp_path_factory: pytest.TempPathFactory,
    refresh_interval: str,
) -> None:
    """Eight clients request 20 MB each and do not read the answers.

    With the longer interval, all answers are complete when Envoy compares its memory with the
    limit. They wait in the buffers of their connections, and no stream is left to reset.
    """
    changes = {
        "max_heap_size_bytes: 1073741824": "max_heap_size_bytes: 134217728",
        "refresh_interval: 0.25s": f"refresh_interval: {refresh_interval}",
    }
    request = f"GET {TASKS}?page_size=200 HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    with ExitStack() as opened:
        edge = opened.enter_context(
            running_edge(
                short_directory(tmp_path_factory), _stub_and_address[1], replacements=changes
            )
        )
        for _ in range(8):
            opened.enter_context(connected(edge, request))
        # On a busy machine, it takes long to make and to read 160 MB. Reads counters, because the
        # memory may be full only between two looks at it.
        eventually(lambda: any(edge.stat(name) for name in GIVEN_UP), 60)
        eventually(lambda: can_cancel(edge) and edge.stat(MEMORY_PERCENT) < RESET_PERCENT, 30)


def test_large_bodies_are_limited_and_other_calls_succeed(edge: RunningEdge, stub: Stub) -> None:
    head = f"POST {TASKS} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{{"
    with ExitStack() as opened:
        for _ in range(LARGE_BODIES):
            opened.enter_context(connected(edge, head.encode()))
        eventually(lambda: large_bodies(edge) == LARGE_BODIES)
        assert can_cancel(edge)
        small = httpx.post(edge.rest_url + TASKS, json={"description": "x"}, trust_env=False)
        assert small.status_code == 202
        one_more = opened.enter_context(connected(edge, head.encode()))
        received = b""
        while not is_whole(received):
            received += one_more.recv(65536)
        assert parse(received).status == 503
    eventually(lambda: large_bodies(edge) == 0)


def large_bodies(edge: RunningEdge) -> int:
    return edge.stat("cluster.control_plane_long.upstream_rq_active")
