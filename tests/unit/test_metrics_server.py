"""The metrics port of a program."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from evershell.telemetry import metrics_server
from evershell.telemetry.metrics_server import serving
from tests.support.ports import free_ports
from tests.support.waiting import eventually


def app(_environ: Any, start: Any) -> list[bytes]:
    start("200 OK", [("content-type", "text/plain")])
    return [b"metrics"]


@pytest.fixture
def port() -> Iterator[int]:
    (port,) = free_ports(1)
    with serving(app, port, "127.0.0.1"):
        yield port


def test_silent_connections_keep_no_threads_and_nobody_out(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    most = before + metrics_server._MAX_CONNECTIONS
    with ExitStack() as silent:
        for number in range(200):
            each = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                # An incomplete request counts as silence.
                each.sendall(b"GET /metrics HTTP/1.1\r\n")
            if number % 20 == 0:
                answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
                assert answer.text == "metrics"
        # The threads of closed connections end.
        eventually(lambda: threading.active_count() <= most)
    eventually(lambda: threading.active_count() <= before)
    # The server has written nothing about the silent clients.
    assert capfd.readouterr() == ("", "")


def test_a_silent_connection_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
        assert silent.recv(1) == b""


def test_a_scrape_in_progress_is_never_cut_off() -> None:
    """If all connections are in use, one more scrape waits until another one has ended."""
    count, begun, go_on = metrics_server._MAX_CONNECTIONS, threading.Semaphore(0), threading.Event()

    def slow(environ: Any, start: Any) -> list[bytes]:
        begun.release()
        go_on.wait(30)
        return app(environ, start)

    (port,) = free_ports(1)
    with serving(slow, port, "127.0.0.1"), ExitStack() as scrapes:
        connections = []
        for number in range(count + 1):
            each = socket.create_connection(("127.0.0.1", port), timeout=30)
            connections.append(scrapes.enter_context(each))
            each.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert number == count or begun.acquire(timeout=30)
        settle_seconds = metrics_server._TIMEOUT_SECONDS / 10
        assert not begun.acquire(timeout=settle_seconds)
        go_on.set()
        for each in connections:
            assert each.makefile("rb").read().endswith(b"metrics")


def test_no_connection_of_a_burst_is_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections wait until the server accepts them."""
    accept, go_on = metrics_server._Server.get_request, threading.Event()

    def accept_later(server: Any) -> Any:
        go_on.wait()
        return accept(server)

    monkeypatch.setattr(metrics_server._Server, "get_request", accept_later)
    with ExitStack() as burst:
        burst.callback(go_on.set)
        for _ in range(64):
            burst.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
