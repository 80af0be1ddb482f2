"""Runs a real Envoy in front of given workers."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from evershell.stack.envoy.config import Edge, Tls, command, render
from evershell.stack.envoy.documents import edge_file
from evershell.stack.envoy.sign_in import Provider
from tests.support.edge.stub import START_SECONDS
from tests.support.ports import free_ports
from tests.support.waiting import eventually


class RunningEdge:
    """A running Envoy, and its addresses."""

    def __init__(self, settings: Edge, verify: ssl.SSLContext | bool = True) -> None:
        self.settings = settings
        self.verify = verify
        self.rest_url = f"{'https' if settings.tls else 'http'}://127.0.0.1:{settings.rest_port}"
        self.grpc_address = f"127.0.0.1:{settings.grpc_port}"
        self.metrics_url = f"http://127.0.0.1:{settings.metrics_port}/metrics"

    def admin(self, path: str) -> str:
        """Returns the admin interface's answer to a GET request for `path`."""
        return self._admin("GET", path)

    def admin_post(self, path: str) -> str:
        """Returns the admin interface's answer to a POST request to `path`."""
        return self._admin("POST", path)

    def _admin(self, method: str, path: str) -> str:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.settings.admin_socket)), trust_env=False
        ) as client:
            return client.request(method, f"http://admin{path}").text

    def stat(self, name: str) -> int:
        """Returns the value of one of Envoy's counters or gauges."""
        return int(self.admin(f"/stats?filter=^{name}$").rpartition(": ")[2])

    def answers(self, status: int) -> bool:
        """Whether /healthz answers with this HTTP status."""
        try:
            return (
                httpx.get(
                    f"{self.rest_url}/healthz", verify=self.verify, trust_env=False
                ).status_code
                == status
            )
        except httpx.TransportError:
            return False

    def raw(self, data: bytes) -> bytes:
        """Sends bytes to the REST port. Returns everything that the edge sends until it closes."""
        with socket.create_connection(
            ("127.0.0.1", self.settings.rest_port), timeout=START_SECONDS
        ) as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return received


@contextmanager
def running_edge(
    directory: Path,
    *workers: str,
    healthz: int = 200,
    replacements: dict[str, str] | None = None,
    tls: Tls | None = None,
    provider: Provider | None = None,
    verify: ssl.SSLContext | bool = True,
    logs_all: bool = True,
) -> Iterator[RunningEdge]:
    """Runs Envoy in front of the workers at these addresses, until the block ends.

    Envoy has started once /healthz answers with the status `healthz`. `replacements` maps texts of
    the rendered configuration to other texts. `verify` tells httpx how to verify the edge's
    certificate. `logs_all` lifts the limit on the rate of log lines, which tests would exceed.
    """
    rest_port, grpc_port, metrics_port = free_ports(3)
    settings = Edge(
        rest_port,
        grpc_port,
        workers,
        directory / "admin.sock",
        metrics_port=metrics_port,
        tls=tls,
        provider=provider,
    )
    config = directory / "envoy.yaml"
    render(settings, config)
    text = config.read_text()
    if logs_all:
        shipped = edge_file("unsolicited_calls.yaml")
        roomy = directory / shipped.name
        roomy.write_text(shipped.read_text().replace("max_tokens: 20", "max_tokens: 1000000"))
        replacements = (replacements or {}) | {str(shipped): str(roomy)}
    for shipped_text, replacement in (replacements or {}).items():
        assert shipped_text in text
        text = text.replace(shipped_text, replacement)
    config.write_text(text)
    edge = RunningEdge(settings, verify)
    # Makes Envoy flush its log every 20 ms instead of every second, because tests wait for lines.
    arguments = ["20" if argument == "1000" else argument for argument in command(config)]
    with (directory / "envoy.log").open("w") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        eventually(lambda: edge.answers(healthz))
        yield edge
    finally:
        process.terminate()
        process.wait(START_SECONDS)
