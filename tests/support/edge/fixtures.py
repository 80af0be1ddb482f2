"""Fixtures: Envoy, with the stub of a worker behind it. Both start once per test session."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub, serving


@pytest.fixture(scope="session")
def _stub_and_address() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with serving(stub) as address:
        yield stub, address


@pytest.fixture
def stub(_stub_and_address: tuple[Stub, str]) -> Stub:
    """The stub behind the edge. Its list of calls is emptied before each test."""
    stub = _stub_and_address[0]
    stub.seen.clear()
    stub.release.clear()
    return stub


@pytest.fixture(scope="session")
def edge(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """The edge with the configuration that users get.

    At the end, the fixture checks that no Lua script has failed, and that the stub has not closed a
    connection because of too many pings.
    """
    with running_edge(short_directory(tmp_path_factory), _stub_and_address[1]) as running:
        yield running
        assert running.stat("http.rest.lua.errors") == 0
        assert running.stat("cluster.control_plane.upstream_cx_close_notify") == 0


@pytest.fixture(scope="session")
def edge_without_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    """An edge without workers: its only worker address is port 1, on which nothing listens."""
    with running_edge(short_directory(tmp_path_factory), "127.0.0.1:1", healthz=503) as running:
        yield running


@pytest.fixture(scope="session")
def edge_with_short_limits(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """An edge whose time limits are 0.3 s."""
    replacements = {
        '"35s"': '"0.3s"',
        "request_headers_timeout: 10s": "request_headers_timeout: 0.3s",
        "request_timeout: 30s": "request_timeout: 0.3s",
    }
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], replacements=replacements
    ) as running:
        yield running


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def rest(request: pytest.FixtureRequest, edge: RunningEdge) -> Iterator[httpx.Client]:
    """A REST client. The test runs once for each version of HTTP."""
    http2 = request.param == "HTTP/2"
    with httpx.Client(
        base_url=edge.rest_url, http1=not http2, http2=http2, trust_env=False, timeout=15
    ) as client:
        yield client


def short_directory(factory: pytest.TempPathFactory) -> Path:
    """Returns a new directory. Socket paths in it are shorter than the kernel's limit."""
    return factory.mktemp("e")
