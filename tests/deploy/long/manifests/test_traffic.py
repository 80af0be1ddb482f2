"""The network policies allow what the programs need, and nothing else between the pods."""

from itertools import product
from typing import Any, TypeAlias

import pytest

from evershell.fleet.kubernetes.objects import AGENT_PORT
from tests.deploy.long.manifests import tools
from tests.deploy.long.manifests.traffic import OUTSIDE, Peer, is_allowed

EDGE, WORKERS, CONTROLLER, MIGRATE, AGENT, DATABASE = (
    Peer(name)
    for name in ("edge", "workers", "controller", "migrate", "evershell-agent", "database")
)
PODS = (EDGE, WORKERS, CONTROLLER, MIGRATE, AGENT, DATABASE)
DNS = Peer("kube-dns", "kube-system")
PROMETHEUS, COLLECTOR = Peer("prometheus", "monitoring"), Peer("collector", "monitoring")
OTHER = Peer("other", "default")
CALLERS_PORT, RUNTIME_PORT, METRICS_PORT, DATABASE_PORT = 50051, 50151, 9100, 5432
PORTS = (
    *(53, 443, 4318, 6443, 8080, 8081),
    *(AGENT_PORT, CALLERS_PORT, DATABASE_PORT, METRICS_PORT, RUNTIME_PORT),
)

Flow: TypeAlias = tuple[Peer, Peer, int]

BASE: set[Flow] = {
    *((pod, DNS, 53) for pod in PODS),
    *((caller, EDGE, port) for caller in (OUTSIDE, OTHER) for port in (8080, 8081)),
    (EDGE, WORKERS, CALLERS_PORT),
    (AGENT, WORKERS, RUNTIME_PORT),
    *((program, AGENT, AGENT_PORT) for program in (WORKERS, CONTROLLER)),
    *((CONTROLLER, OUTSIDE, port) for port in (443, 6443)),
    *((program, OUTSIDE, DATABASE_PORT) for program in (WORKERS, CONTROLLER, MIGRATE)),
}
OVERLAYS: dict[str, set[Flow]] = {
    "local": {(program, DATABASE, DATABASE_PORT) for program in (WORKERS, CONTROLLER, MIGRATE)},
    "production": {
        (WORKERS, OUTSIDE, 443),
        *((PROMETHEUS, program, METRICS_PORT) for program in (EDGE, WORKERS, CONTROLLER)),
        *((program, COLLECTOR, 4318) for program in (EDGE, WORKERS)),
    },
}


@pytest.mark.parametrize("name", tools.OVERLAYS)
def test_the_policies_allow_what_is_needed_and_no_more(name: str) -> None:
    tools.require()
    overlay: list[dict[str, Any]] = tools.render(name)
    needed = BASE | OVERLAYS[name]
    assert {flow for flow in needed if not is_allowed(overlay, *flow)} == set()
    between = {
        (source, target, port)
        for source, target, port in product((*PODS, OTHER), PODS, PORTS)
        if source != target or source == AGENT
    }
    outside = set(product((EDGE, AGENT), (OUTSIDE, OTHER), PORTS))
    allowed = {flow for flow in between | outside if is_allowed(overlay, *flow)}
    assert allowed - needed == set()
