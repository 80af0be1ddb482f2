"""A stack whose pods run on a real node.

The tests need KUBECONFIG, the image of an agent on the node (NODE_IMAGE), and the address at which
pods reach this machine (NODE_HOST).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exhaustive.deploy.tools import kubectl
from tests.support.ports import free_ports
from tests.support.stack import Stack

_CLASS = "test-node"
_VOLUMES = 8


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with POD_BACKEND=kubernetes, and TLS to its agents as in `deploy/base`."""
    image, host = os.environ.get("NODE_IMAGE"), os.environ.get("NODE_HOST")
    if not (os.environ.get("KUBECONFIG") and image and host):
        pytest.skip("KUBECONFIG, NODE_IMAGE and NODE_HOST are not all set: no node")
    folder = tmp_path_factory.mktemp("node")
    _create_volumes(folder)
    first, _, runtime, _ = free_ports(4)
    running = Stack(
        folder / "state",
        POD_BACKEND="kubernetes",
        POD_IMAGE=image,
        POD_STORAGE="1Mi",
        POD_STORAGE_CLASS=_CLASS,
        POD_MEMORY_REQUEST="32Mi",
        POD_CPU_REQUEST="10m",
        POD_MEMORY_LIMIT="128Mi",
        POD_END_SECONDS="15",
        AGENT_COMMAND="/usr/bin/python3 -P -m evershell.server.agent",
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


def _create_volumes(folder: Path) -> None:
    """A cluster without a provisioner takes volumes that exist."""
    volumes = []
    for number in range(_VOLUMES):
        path = folder / f"volume-{number}"
        path.mkdir()
        path.chmod(0o777)
        volumes.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{_CLASS}-{number}"},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": _CLASS,
                    "hostPath": {"path": str(path)},
                },
            }
        )
    kubectl(
        "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": volumes})
    )


def pod(workspace_id: str) -> dict[str, Any]:
    """The only pod of the workspace."""
    label = f"evershell.ai/workspace={workspace_id}"
    (found,) = json.loads(kubectl("get", "pods", "-l", label, "-o", "json"))["items"]
    return dict(found)


def pods(workspace_id: str) -> list[dict[str, Any]]:
    """The pods of the workspace."""
    label = f"evershell.ai/workspace={workspace_id}"
    return list(json.loads(kubectl("get", "pods", "-l", label, "-o", "json"))["items"])


def delete_from_outside(name: str) -> None:
    """Deletes a pod as a drain does, without waiting."""
    kubectl("delete", "pod", name, "--wait=false")
