"""The network policies allow what the programs need, and nothing else between the pods."""

from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import pytest

from evershell.fleet.kubernetes.objects import AGENT_PORT
from tests.deploy.long.manifests import tools

NAMESPACE = "evershell"
_NAME = "app.kubernetes.io/name"
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """A pod with this name label; if the name is empty, an address outside the cluster."""

    name: str = ""
    namespace: str = NAMESPACE


OUTSIDE = Peer()


def is_allowed(rendered: list[dict[str, Any]], source: Peer, target: Peer, port: int) -> bool:
    """Whether the network policies allow traffic from `source` to this port of `target`."""
    policies = [o["spec"] for o in rendered if o["kind"] == "NetworkPolicy"]
    return _passes(policies, "Egress", source, target, port) and _passes(
        policies, "Ingress", target, source, port
    )


def _passes(
    policies: list[dict[str, Any]], direction: str, pod: Peer, peer: Peer, port: int
) -> bool:
    """Whether a policy of the pod allows the traffic.

    Also true if no policy of the pod limits this direction, or if the pod is not in NAMESPACE.
    """
    if not pod.name or pod.namespace != NAMESPACE:
        return True
    own = [
        each
        for each in policies
        if direction in each["policyTypes"] and _selects(each["podSelector"], {_NAME: pod.name})
    ]
    side = {"Egress": "to", "Ingress": "from"}[direction]
    rules = [rule for each in own for rule in each.get(direction.lower(), ())]
    return not own or any(
        any(each["port"] == port for each in rule["ports"])
        and (side not in rule or any(_is_peer(each, peer) for each in rule[side]))
        for rule in rules
    )


def _is_peer(found: dict[str, Any], peer: Peer) -> bool:
    assert set(found) <= {"podSelector", "namespaceSelector", "ipBlock"}
    if "ipBlock" in found:
        # The block contains only public addresses. Pods have private addresses, so none is in it.
        return not peer.name
    if not peer.name:
        return False
    namespaces = found.get("namespaceSelector", {"matchLabels": {_NAMESPACE_LABEL: NAMESPACE}})
    return _selects(namespaces, {_NAMESPACE_LABEL: peer.namespace}) and _selects(
        found.get("podSelector", {}), {_NAME: peer.name}
    )


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


EDGE, WORKERS, CONTROLLER, MIGRATE, TEST, AGENT, DATABASE = (
    Peer(name)
    for name in ("edge", "workers", "controller", "migrate", "test", "evershell-agent", "database")
)
PODS = (EDGE, WORKERS, CONTROLLER, MIGRATE, TEST, AGENT, DATABASE)
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
    (TEST, EDGE, 8080),
    (AGENT, WORKERS, RUNTIME_PORT),
    *((program, AGENT, AGENT_PORT) for program in (WORKERS, CONTROLLER)),
    *((CONTROLLER, OUTSIDE, port) for port in (443, 6443)),
    (WORKERS, OUTSIDE, 443),
    *((program, OUTSIDE, DATABASE_PORT) for program in (WORKERS, CONTROLLER, MIGRATE)),
}
VALUES: dict[str, set[Flow]] = {
    "trial": {(program, DATABASE, DATABASE_PORT) for program in (WORKERS, CONTROLLER, MIGRATE)},
    "production": {
        *((PROMETHEUS, program, METRICS_PORT) for program in (EDGE, WORKERS, CONTROLLER)),
        *((program, COLLECTOR, 4318) for program in (EDGE, WORKERS)),
        (AGENT, OUTSIDE, 443),
    },
}


@pytest.mark.parametrize("name", VALUES)
def test_the_policies_allow_what_is_needed_and_no_more(name: str) -> None:
    tools.require()
    rendered = tools.render(tools.SETS[name])
    if name == "trial":
        rendered += tools.trial_objects()
    needed = BASE | VALUES[name]
    assert {flow for flow in needed if not is_allowed(rendered, *flow)} == set()
    between = {
        (source, target, port)
        for source, target, port in product((*PODS, OTHER), PODS, PORTS)
        if source != target or source == AGENT
    }
    outside = set(product((EDGE, AGENT), (OUTSIDE, OTHER), PORTS))
    allowed = {flow for flow in between | outside if is_allowed(rendered, *flow)}
    assert allowed - needed == set()
