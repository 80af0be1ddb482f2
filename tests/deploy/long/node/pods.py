"""The pods of workspaces, as kubectl shows them."""

import json
from collections.abc import Callable
from typing import Any

from tests.deploy.long.manifests import tools
from tests.deploy.long.node.stacks import LIMIT_SECONDS
from tests.support.service import ServiceWorkspace

# Runs kubectl with these arguments in a namespace.
Kubectl = Callable[..., str]
_LIMIT = f"--timeout={LIMIT_SECONDS:g}s"


def pods(workspace: ServiceWorkspace, kubectl: Kubectl = tools.kubectl) -> list[dict[str, Any]]:
    """The pods of the workspace."""
    return list(json.loads(kubectl("get", "pods", *_of(workspace), "-o", "json"))["items"])


def pod(workspace: ServiceWorkspace, kubectl: Kubectl = tools.kubectl) -> dict[str, Any]:
    """The only pod of the workspace."""
    (found,) = pods(workspace, kubectl)
    return found


def running_pod(workspace: ServiceWorkspace, kubectl: Kubectl = tools.kubectl) -> dict[str, Any]:
    """Waits until the kubelet reports the workspace's only pod as ready. Returns the pod."""
    await_condition("condition=Ready", workspace, kubectl=kubectl)
    return pod(workspace, kubectl)


def await_condition(
    condition: str, *workspaces: ServiceWorkspace, kubectl: Kubectl = tools.kubectl
) -> None:
    """Waits until all pods of the workspaces meet the condition of `kubectl wait`."""
    for each in workspaces:
        kubectl("wait", "pods", *_of(each), f"--for={condition}", _LIMIT)


def await_no_pods(*workspaces: ServiceWorkspace) -> None:
    """Waits until the pods of the workspaces are gone."""
    await_condition("delete", *workspaces)


def open_gate(workspace: ServiceWorkspace, kubectl: Kubectl = tools.kubectl) -> None:
    """Lets the command GATE end, which runs in the workspace's pod."""
    name = pod(workspace, kubectl)["metadata"]["name"]
    kubectl("exec", name, "--", "touch", "gate")


# A command that runs until `open_gate` is called.
GATE = "until [ -e gate ]; do sleep 0.1; done; rm gate"


def _of(workspace: ServiceWorkspace) -> tuple[str, str]:
    return "--selector", f"evershell.ai/workspace={workspace.id}"
