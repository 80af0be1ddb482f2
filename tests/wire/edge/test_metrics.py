"""Envoy's metrics, on their own listener."""

import re
import socket
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.support.alerts import ALERTS, PANELS, RECORDED
from tests.support.edge.cases import CANCEL
from tests.support.edge.fixtures import short_directory
from tests.support.edge.running_edge import RunningEdge, running_edge
from tests.support.edge.stub import Stub
from tests.support.metrics import read
from tests.support.waiting import eventually

# The limit on connections to the listener for metrics in envoy.yaml.
CONNECTIONS = 64
METRIC = re.compile(r"\benvoy_\w+(?=\{)")


def test_the_alerts_and_the_dashboard_use_metrics_that_envoy_exports(edge: RunningEdge) -> None:
    httpx.get(f"{edge.rest_url}/v1/workspaces/ws_1", headers={"authorization": "Bearer sk_1"})
    exported = {name for name, _ in read(edge.metrics_url)}
    expressions = [*RECORDED.values(), *(rule["expr"] for rule in ALERTS.values())]
    expressions += [target["expr"] for panel in PANELS for target in panel["targets"]]
    used = {name for expression in expressions for name in METRIC.findall(expression)}
    assert used
    assert used <= exported


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/config_dump"), ("POST", "/quitquitquit")]
)
def test_nothing_else_of_the_admin_interface_is_served(
    edge: RunningEdge, method: str, path: str
) -> None:
    url = edge.metrics_url.replace("/metrics", path)
    assert httpx.request(method, url, trust_env=False).status_code == 404


def has_metrics(edge: RunningEdge) -> bool:
    """Whether the edge serves its metrics to a new connection."""
    with suppress(httpx.TransportError):
        return httpx.get(edge.metrics_url, trust_env=False).status_code == 200
    return False


def test_silent_connections_are_few_and_callers_cancel(
    _stub_and_address: tuple[Stub, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The limits on callers' connections and memory do not apply to the listener for metrics.

    It has its own limit on connections, so that silent ones do not use up the file descriptors.
    """
    soon = {'"idle_timeout": "10s"': '"idle_timeout": "2s"'}
    with (
        running_edge(
            short_directory(tmp_path_factory), _stub_and_address[1], replacements=soon
        ) as edge,
        ExitStack() as silent,
    ):
        for _ in range(3 * CONNECTIONS):
            address = ("127.0.0.1", edge.settings.metrics_port)
            silent.enter_context(socket.create_connection(address))
        eventually(lambda: edge.stat("http.metrics.downstream_cx_total") >= CONNECTIONS)
        assert edge.stat("http.metrics.downstream_cx_active") <= CONNECTIONS
        assert httpx.post(edge.rest_url + CANCEL, trust_env=False).status_code == 202
        eventually(lambda: has_metrics(edge))
