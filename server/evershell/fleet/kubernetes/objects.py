"""The objects of a workspace: a claim for its files, and a pod and a secret for each epoch."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeAlias

from pydantic import BaseModel, field_validator
from pydantic_settings import BaseSettings

from evershell.core.errors import OperatorError
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
# Runs a command with the spec as its standard input, where agents expect it (docs/agents.md).
_WITH_SPEC = ("/bin/sh", "-c", f'exec "$@" < {_SPEC_DIR}/{_SPEC_FILE}', "--")
# The fields of a pod's spec that a template may not set.
_OWN_FIELDS = {
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
    "terminationGracePeriodSeconds",
    "volumes",
}
# The grace period of the agent if a deletion of the pod names none. The controller always names a
# grace period.
_GRACE_SECONDS = 10


class PodSettings(BaseSettings):
    """The settings of pods on Kubernetes, a part of the settings of the server."""

    pod_image: str = ""
    """The image of the agents. If set, pods run in a [Kubernetes cluster](kubernetes.md); if empty,
    as processes of this machine."""
    pod_template_file: Path | None = None
    """A file with the [resources, the volume and more fields](kubernetes.md#the-template-of-pods)
    of the pods, in YAML. The controller reads it when it starts. If empty, the defaults."""

    @property
    def on_kubernetes(self) -> bool:
        """Whether pods run in a Kubernetes cluster."""
        return bool(self.pod_image)


_DEFAULTS: Object = {
    "resources": {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"cpu": "1", "memory": "2Gi"},
    },
    "volume": {"resources": {"requests": {"storage": "1Gi"}}},
}


class PodTemplate(BaseModel, frozen=True, extra="forbid"):
    """What all pods have in common: the image, the command, and what POD_TEMPLATE_FILE sets."""

    image: str
    # The program of the agent, with its arguments.
    command: Sequence[str]
    # The resources of the container.
    resources: Object = _DEFAULTS["resources"]
    # Further fields of the pod's spec, such as `nodeSelector`.
    pod: Object = {}
    # Fields of the claim's spec.
    volume: Object = _DEFAULTS["volume"]

    @field_validator("pod")
    @classmethod
    def _has_no_field_of_ours(cls, value: Object) -> Object:
        if own := sorted(value.keys() & _OWN_FIELDS):
            raise ValueError(f"may not have {', '.join(own)}")
        return value

    @classmethod
    def read(cls, settings: PodSettings, command: Sequence[str]) -> Self:
        """Reads POD_TEMPLATE_FILE; without it, gives the defaults. Raises OperatorError."""
        # Imported here, because only the extra for pods on Kubernetes installs this package.
        import yaml

        path = settings.pod_template_file
        try:
            fields = yaml.safe_load(path.read_text()) if path is not None else {}
            return cls(
                image=settings.pod_image, command=command, **_merged(_DEFAULTS, fields or {})
            )
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise OperatorError(f"POD_TEMPLATE_FILE cannot be used: {error}") from error


def _merged(defaults: Object, given: Object) -> Object:
    """`given`, with the fields of `defaults` that `given` lacks.

    A null in `given` removes the field.
    """
    merged = {**defaults, **given}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(merged[name], dict):
            merged[name] = _merged(default, merged[name])
    return {name: value for name, value in merged.items() if value is not None}


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
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim_name(workspace.id),
            "labels": _labels(workspace),
            "annotations": {STARTED_ANNOTATION: started(workspace)},
        },
        "spec": {"accessModes": ["ReadWriteOnce"], **template.volume},
    }


def pod(workspace: Workspace, template: PodTemplate) -> Object:
    """The pod of the workspace's epoch. It meets the Pod Security Standard `restricted`."""
    name = pod_name(workspace.id, workspace.epoch)
    spec: Object = {
        **template.pod,
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
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**_labels(workspace), EPOCH_LABEL: str(workspace.epoch)},
            # Asks the cluster autoscaler not to move the pod, because a move ends the agent.
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
    return {
        "name": CONTAINER,
        "image": template.image,
        "command": [*_WITH_SPEC, *template.command],
        "workingDir": FILES_DIR,
        "env": [
            {"name": "HOME", "value": FILES_DIR},
            {"name": "LANG", "value": "C.UTF-8"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "resources": template.resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # If the agent fails, copies the last lines of its log into the status of the pod.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "files", "mountPath": FILES_DIR},
            {"name": "spec", "mountPath": _SPEC_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own volume
        ],
    }


def _labels(workspace: Workspace) -> dict[str, str]:
    key, _, value = MANAGED_BY.partition("=")
    labels = {
        key: value,
        "app.kubernetes.io/name": "evershell-agent",
        WORKSPACE_LABEL: workspace.id,
    }
    # Left out if the id, which the identity provider chooses, is not a valid value of a label.
    if _LABEL_VALUE.fullmatch(workspace.org_id):
        labels[_ORG_LABEL] = workspace.org_id
    return labels


def _slug(workspace_id: str) -> str:
    # Ids are ULIDs, so no two of them differ only in case.
    return workspace_id.lower().replace("_", "-")


def key_of(pod: Object) -> tuple[str, int]:
    """The workspace id and the epoch of an object. A claim has the epoch 0."""
    labels = pod["metadata"].get("labels") or {}
    epoch = labels.get(EPOCH_LABEL, "")
    return labels.get(WORKSPACE_LABEL, ""), int(epoch) if epoch.isdecimal() else 0
