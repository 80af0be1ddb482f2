"""The node of the cluster, on which NODE_SHELL runs a command: `sh -c`, if it is this machine."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_LIMIT_SECONDS = 30
# A file, or systemd, knows the process of the kubelet.
_KUBELET = (
    "$(cat /run/kubelet.pid 2>/dev/null || systemctl show --property MainPID --value kubelet)"
)


def require() -> None:
    """Skips the test if it cannot run commands on the node."""
    if not os.environ.get("NODE_SHELL"):
        pytest.skip("NODE_SHELL is not set: no commands on the node")


def kill_agent(pod: dict[str, Any]) -> None:
    """Kills the first process of the pod, as nothing inside of the pod can."""
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
    command = [*shlex.split(os.environ["NODE_SHELL"]), script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
