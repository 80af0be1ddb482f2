"""The edge and the stub behind it, started once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.edge.stub import RunningEdge, Stub, running_edge, serving


@pytest.fixture(scope="session")
def _stub_and_address() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with serving(stub) as address:
        yield stub, address


@pytest.fixture
def stub(_stub_and_address: tuple[Stub, str]) -> Stub:
    """The control plane, with nothing seen yet."""
    stub = _stub_and_address[0]
    stub.seen.clear()
    stub.release.clear()
    return stub


@pytest.fixture(scope="session")
def edge(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """The edge as it is shipped. No test may leave a Lua error behind, nor a worker that took the
    edge's pings for an attack.
    """
    with running_edge(short_directory(tmp_path_factory), _stub_and_address[1]) as running:
        yield running
        assert running.stat("http.rest.lua.errors") == 0
        assert running.stat("cluster.control_plane.upstream_cx_close_notify") == 0


@pytest.fixture(scope="session")
def lonely_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    """The edge with no control plane behind it. Nothing listens on port 1."""
    with running_edge(short_directory(tmp_path_factory), "127.0.0.1:1", healthz=503) as running:
        yield running


@pytest.fixture(scope="session")
def hasty_edge(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEdge]:
    """The edge with short time limits."""
    hurry = {
        '"35s"': '"0.3s"',
        "request_headers_timeout: 10s": "request_headers_timeout: 0.3s",
        "request_timeout: 30s": "request_timeout: 0.3s",
    }
    with running_edge(
        short_directory(tmp_path_factory), _stub_and_address[1], hurry=hurry
    ) as running:
        yield running


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def rest(request: pytest.FixtureRequest, edge: RunningEdge) -> Iterator[httpx.Client]:
    """A REST client, once for each protocol."""
    http2 = request.param == "HTTP/2"
    with httpx.Client(
        base_url=edge.rest_url, http1=not http2, http2=http2, trust_env=False, timeout=15
    ) as client:
        yield client


def short_directory(factory: pytest.TempPathFactory) -> Path:
    """A directory whose sockets fit the kernel's limit."""
    return factory.mktemp("e")
