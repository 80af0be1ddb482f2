"""The programs in a cluster with a real node, and a stack beside it whose pods run there.

All tests need KUBECONFIG, and the image evershell:1 on the nodes. deploy/README.md describes the
other variables.
"""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.exhaustive.deploy.tools import kubectl
from tests.exhaustive.node import node
from tests.exhaustive.node.deployment import Deployment
from tests.support.ports import free_ports
from tests.support.stack import Stack
from tests.support.waiting import eventually

# The kubelet of a loaded machine is late.
_REPORT_SECONDS = 60.0


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The programs of `deploy/overlays/local` in the cluster."""
    node.require()
    with Deployment.applied(tmp_path_factory.mktemp("deployment")) as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with POD_BACKEND=kubernetes, and TLS to its agents as in `deploy/base`."""
    node.require()
    host = os.environ.get("NODE_HOST") or _own_address()
    folder = tmp_path_factory.mktemp("node")
    first, _, runtime, _ = free_ports(4)
    running = Stack(
        folder / "state",
        POD_BACKEND="kubernetes",
        POD_IMAGE="evershell:1",
        POD_STORAGE="1Mi",
        POD_MEMORY_REQUEST="32Mi",
        POD_CPU_REQUEST="10m",
        POD_MEMORY_LIMIT="128Mi",
        # A kubelet whose report has failed repeats it after 10 s.
        POD_END_SECONDS="40",
        LEASE_SECONDS="15",
        AGENT_COMMAND="/opt/evershell/bin/python -P -m evershell.server.agent",
        LISTEN_HOST="0.0.0.0",  # noqa: S104 - pods call the workers
        SERVER_PORT=str(first),
        AGENT_TLS="on",
        RUNTIME_PORT=str(runtime),
        RUNTIME_SERVICE=f"{host}:{runtime},{host}:{runtime + 1}",
    )
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        running.kill_if_running()


def _own_address() -> str:
    """The address of this machine for other hosts, such as the nodes of kind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        # Chooses a route, and sends nothing. 192.0.2.1 belongs to nobody (RFC 5737).
        unconnected.connect(("192.0.2.1", 1))
        return str(unconnected.getsockname()[0])


def pod(workspace_id: str) -> dict[str, Any]:
    """The only pod of the workspace."""
    label = f"evershell.ai/workspace={workspace_id}"
    (found,) = json.loads(kubectl("get", "pods", "-l", label, "-o", "json"))["items"]
    return dict(found)


def running_pod(workspace_id: str) -> dict[str, Any]:
    """The same, once the kubelet has reported its container. The agent may have begun before."""

    def reported() -> dict[str, Any] | None:
        found = pod(workspace_id)
        statuses = found["status"].get("containerStatuses", ())
        return found if any("containerID" in each for each in statuses) else None

    found = eventually(reported, _REPORT_SECONDS)
    assert found is not None
    return found


def pods(workspace_id: str) -> list[dict[str, Any]]:
    """The pods of the workspace."""
    label = f"evershell.ai/workspace={workspace_id}"
    return list(json.loads(kubectl("get", "pods", "-l", label, "-o", "json"))["items"])


def delete_from_outside(name: str) -> None:
    """Deletes a pod as a drain does, without waiting."""
    kubectl("delete", "pod", name, "--wait=false")
