"""Envoy's metrics, on a listener of their own."""

import re

import httpx
import pytest

from tests.support.alerts import ALERTS, PANELS, RECORDED
from tests.support.edge.running_edge import RunningEdge
from tests.support.metrics import read

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
