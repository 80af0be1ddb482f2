"""The objects of a workspace: a volume claim for its files, and for each epoch a pod and its
secret.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from pydantic_settings import BaseSettings, SettingsConfigDict

from evershell.core.workspace import Workspace
from evershell.pod.spec import PodSpec

# An API object as JSON. Fields that this program does not know are kept.
Object: TypeAlias = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by=evershell"
WORKSPACE_LABEL, EPOCH_LABEL = "evershell.ai/workspace", "evershell.ai/epoch"
_ORG_LABEL = "evershell.ai/org"
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
# On a claim, the epoch and the run of the pod that was started last. On a pod, its own epoch and
# run.
STARTED_ANNOTATION = "evershell.ai/started"
CONTAINER = "agent"
# The agent's port. It is fixed so that network policies can name it.
AGENT_PORT = 50061
FILES_DIR = "/workspace"
_SPEC_DIR = "/run/evershell"
_SPEC_FILE = "spec.json"
# The user and the group of the agent and its tools.
_UID = 10001
# Runs a command with the spec as its standard input, as agents expect it (docs/agents.md).
_WITH_SPEC = ("/bin/sh", "-c", f'exec "$@" < {_SPEC_DIR}/{_SPEC_FILE}', "--")
# The grace period of the agent if somebody else deletes the pod.
_GRACE_SECONDS = 10


class PodSettings(BaseSettings):
    """The settings of pods on Kubernetes, a part of the settings of the server."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    pod_image: str = ""
    """The image of the agents. Required for pods on Kubernetes."""
    pod_image_pull_secret: str = ""
    """The Secret in the namespace of the pods with which their image is pulled, if its registry
    needs credentials."""
    pod_cpu_request: str = "100m"
    """The CPU that each pod requests, in the notation of Kubernetes."""
    pod_cpu_limit: str = "1"
    """The CPU that each pod may use, tools included."""
    pod_memory_request: str = "256Mi"
    """The memory that each pod requests."""
    pod_memory_limit: str = "2Gi"
    """The memory that each pod may use, tools included."""
    pod_storage: str = "1Gi"
    """The size of the volume with a workspace's files."""
    pod_storage_class: str = ""
    """The storage class of these volumes. If empty, the default of the cluster."""
    pod_runtime_class: str = ""
    """The runtime class of the pods, for example one of gVisor or Kata. If empty, the default of
    the cluster."""


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What all pods have in common."""

    # The settings of the server are among them, with its secrets.
    settings: PodSettings = field(repr=False)
    # The program of the agent, with its arguments.
    command: Sequence[str]


def pod_name(workspace_id: str, epoch: int) -> str:
    """The name of the pod and of its secret. One name for each epoch makes the start idempotent."""
    return f"agent-{_slug(workspace_id)}-{epoch}"


def claim_name(workspace_id: str) -> str:
    """The name of the claim with the workspace's files."""
    return f"files-{_slug(workspace_id)}"


def started(workspace: Workspace) -> str:
    """The value of STARTED_ANNOTATION for the pod of this epoch."""
    return f"{workspace.epoch} {workspace.run_id}"


def started_of(claim: Object) -> str | None:
    """The value of STARTED_ANNOTATION of a claim or a pod."""
    annotations = claim["metadata"].get("annotations") or {}
    return annotations.get(STARTED_ANNOTATION)


def claim(workspace: Workspace, template: PodTemplate) -> Object:
    """The claim of the volume with the workspace's files."""
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": template.settings.pod_storage}},
    }
    if template.settings.pod_storage_class:
        spec["storageClassName"] = template.settings.pod_storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(workspace.id),
            "labels": _labels(workspace),
            "annotations": {STARTED_ANNOTATION: started(workspace)},
        },
        "spec": spec,
    }


def pod(workspace: Workspace, template: PodTemplate) -> Object:
    """The pod of the workspace's epoch. It fits the Pod Security Standard `restricted`."""
    name = pod_name(workspace.id, workspace.epoch)
    spec: Object = {
        # Agents are never restarted automatically.
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(template)],
        "volumes": [
            {
                "name": "files",
                "persistentVolumeClaim": {"claimName": claim_name(workspace.id)},
            },
            {"name": "spec", "secret": {"secretName": name, "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
    }
    if template.settings.pod_image_pull_secret:
        spec["imagePullSecrets"] = [{"name": template.settings.pod_image_pull_secret}]
    if template.settings.pod_runtime_class:
        spec["runtimeClassName"] = template.settings.pod_runtime_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**_labels(workspace), EPOCH_LABEL: str(workspace.epoch)},
            # Asks the cluster autoscaler not to move the pod: a moved agent is a lost agent.
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                STARTED_ANNOTATION: started(workspace),
            },
        },
        "spec": spec,
    }


def secret(workspace: Workspace, spec: PodSpec, owner: Object) -> Object:
    """The secret with the spec.

    Its owner is the pod, so that the secret is deleted with the pod.
    """
    name = owner["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "labels": {**_labels(workspace), EPOCH_LABEL: str(workspace.epoch)},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": owner["metadata"]["uid"]}
            ],
        },
        "immutable": True,
        "type": "Opaque",
        "data": {_SPEC_FILE: base64.b64encode(json.dumps(asdict(spec)).encode()).decode()},
    }


def _container(template: PodTemplate) -> Object:
    settings = template.settings
    return {
        "name": CONTAINER,
        "image": settings.pod_image,
        "command": [*_WITH_SPEC, *template.command],
        "workingDir": FILES_DIR,
        "env": [
            {"name": "HOME", "value": FILES_DIR},
            {"name": "LANG", "value": "C.UTF-8"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": settings.pod_cpu_request, "memory": settings.pod_memory_request},
            "limits": {"cpu": settings.pod_cpu_limit, "memory": settings.pod_memory_limit},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Copies the last lines of the log into the status of the pod.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "files", "mountPath": FILES_DIR},
            {"name": "spec", "mountPath": _SPEC_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        ],
    }


def _labels(workspace: Workspace) -> dict[str, str]:
    key, _, value = MANAGED_BY.partition("=")
    labels = {
        key: value,
        "app.kubernetes.io/name": "evershell-agent",
        WORKSPACE_LABEL: workspace.id,
    }
    # The identity provider may choose any text as the id of an organization.
    if _LABEL_VALUE.fullmatch(workspace.org_id):
        labels[_ORG_LABEL] = workspace.org_id
    return labels


def _slug(workspace_id: str) -> str:
    # Ids are ULIDs, so no two of them differ only in case.
    return workspace_id.lower().replace("_", "-")


def key_of(pod: Object) -> tuple[str, int]:
    """The workspace id and the epoch of an object; epoch 0 for a claim."""
    labels = pod["metadata"].get("labels") or {}
    epoch = labels.get(EPOCH_LABEL, "")
    return labels.get(WORKSPACE_LABEL, ""), int(epoch) if epoch.isdecimal() else 0
