"""The node of the cluster, and commands on it."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from tests.deploy.long.manifests.tools import kubectl

_KIND = "kind://docker/"
_LIMIT_SECONDS = 30
# The process id of the kubelet, from a file or from systemd.
_KUBELET = (
    "$(cat /run/kubelet.pid 2>/dev/null || systemctl show --property MainPID --value kubelet)"
)


def require() -> None:
    """Skips the test if there is no node."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: no node")
    if not nodes():
        pytest.skip("the cluster of KUBECONFIG has no node")


def require_shell() -> None:
    """Skips the test if it cannot run commands on the node."""
    require()
    if not shell(nodes()):
        pytest.skip("NODE_SHELL is not set, and the cluster is not of kind: no commands on a node")


def require_image(name: str) -> None:
    """Skips the test if no node has this image."""
    require()
    images = [each for node in nodes() for each in node["status"].get("images", ())]
    if not any(each.endswith(f"/{name}") for image in images for each in image["names"]):
        pytest.skip(f"the image {name} is not on the nodes")


@cache
def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster."""
    return list(json.loads(kubectl("get", "nodes", "-o", "json"))["items"])


def shell(nodes: list[dict[str, Any]]) -> list[str]:
    """The command prefix that runs a shell script on the only node; empty if none is known.

    The variable NODE_SHELL sets the prefix. By default, a cluster made by kind uses `docker exec`.
    """
    if given := os.environ.get("NODE_SHELL"):
        return shlex.split(given)
    if len(nodes) == 1 and nodes[0]["spec"].get("providerID", "").startswith(_KIND):
        return ["docker", "exec", nodes[0]["metadata"]["name"], "sh", "-c"]
    return []


def kill_agent(pod: dict[str, Any]) -> None:
    """Kills the first process of the pod from the node: no process inside the pod can kill it."""
    _run(f"ctr -n k8s.io tasks kill --signal SIGKILL {_container(pod)}")


@contextmanager
def silent_kubelet() -> Iterator[None]:
    """Stops the kubelet inside the block. Pods continue to run."""
    _run(f"kill -s STOP {_KUBELET}")
    try:
        yield
    finally:
        _run(f"kill -s CONT {_KUBELET}")


@contextmanager
def frozen(*pods: dict[str, Any]) -> Iterator[None]:
    """Freezes all processes of the pods inside the block."""
    for pod in pods:
        _run(f"ctr -n k8s.io tasks pause {_container(pod)}")
    try:
        yield
    finally:
        for pod in pods:
            _run(f"ctr -n k8s.io tasks resume {_container(pod)}")


def _container(pod: dict[str, Any]) -> str:
    (status,) = pod["status"]["containerStatuses"]
    return str(status["containerID"]).removeprefix("containerd://")


def _run(script: str) -> None:
    command = [*shell(nodes()), script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
