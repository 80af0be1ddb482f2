"""What network policies allow, as Kubernetes defines it."""

from dataclasses import dataclass
from typing import Any

NAMESPACE = "evershell"
_NAME = "app.kubernetes.io/name"
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """A pod, by its name label; without one, an address outside of the cluster."""

    name: str = ""
    namespace: str = NAMESPACE


OUTSIDE = Peer()


def is_allowed(overlay: list[dict[str, Any]], source: Peer, target: Peer, port: int) -> bool:
    """Whether the source may send and the target may receive."""
    policies = [o["spec"] for o in overlay if o["kind"] == "NetworkPolicy"]
    return _passes(policies, "Egress", source, target, port) and _passes(
        policies, "Ingress", target, source, port
    )


def _passes(
    policies: list[dict[str, Any]], direction: str, pod: Peer, peer: Peer, port: int
) -> bool:
    """Whether a policy of the pod allows it, or none is about this direction."""
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
    assert set(found) <= {"podSelector", "namespaceSelector"}
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
