"""Which command reaches the node."""

from typing import Any

import pytest

from tests.deploy.long.node.node import shell


def found(name: str, provider_id: str) -> dict[str, Any]:
    """A node as the API server returns it."""
    return {"metadata": {"name": name}, "spec": {"providerID": provider_id}}


KIND = found("kind-control-plane", "kind://docker/kind/kind-control-plane")
OTHER = {"metadata": {"name": "node1"}, "spec": {}}


@pytest.mark.parametrize(
    ("nodes", "command"),
    [
        ([KIND], ["docker", "exec", "kind-control-plane", "sh", "-c"]),
        # It is not known on which of them a pod runs.
        ([KIND, KIND], []),
        ([OTHER], []),
    ],
)
def test_a_node_of_kind_is_a_container(
    nodes: list[dict[str, Any]], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_SHELL", raising=False)
    assert shell(nodes) == command
    monkeypatch.setenv("NODE_SHELL", "ssh node sh -c")
    assert shell(nodes) == ["ssh", "node", "sh", "-c"]
