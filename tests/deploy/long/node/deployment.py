"""The trial of deploy/ on a cluster, installed as deploy/README.md says."""

import copy
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from evershell.auth.signing_keys import new_key
from tests.deploy.long.manifests import tools
from tests.support.service import Service

NAMESPACE = "evershell"
# The first version of Kubernetes with gRPC probes, which the chart needs.
_GRPC_PROBES = (1, 24)
_OLD = Path(__file__).parent / "overlay"
_RELEASE = "evershell"
_READY_SECONDS = 200
_READY = f"--timeout={_READY_SECONDS}s"
_DATABASE_PASSWORD = "evershell"
# The memory request that an upgrade sets.
UPGRADED_MEMORY = "96Mi"


def kubectl(*arguments: str, given: str = "") -> str:
    """Runs kubectl in the namespace of the deployment."""
    return tools.kubectl("--namespace", NAMESPACE, *arguments, given=given)


class Deployment(Service):
    """A release of the chart, and forwarded ports of the edge and the database."""

    def __init__(self, helm: Any, folder: Path) -> None:
        super().__init__()
        # The connection of helm_python to the cluster.
        self._helm = helm
        self._folder = folder

    @classmethod
    @contextmanager
    def installed(cls, folder: Path) -> Iterator["Deployment"]:
        """Installs the trial in a new namespace, and deletes the namespace after the block."""
        library = pytest.importorskip("helm_python", reason="run `make .venv/.deploy-ready`")
        tools.kubectl("create", "-f", str(tools.DEPLOY / "trial" / "database.yaml"))
        try:
            _create_keys(folder)
            kubectl("rollout", "status", "deployment/database", _READY)
            with ExitStack() as forwarded:
                helm = forwarded.enter_context(library.Config(namespace=NAMESPACE))
                running = cls(helm, folder)
                with _described():
                    running._release(helm.install, _values())
                    helm.test(_RELEASE, timeout=_READY_SECONDS)
                running._open(forwarded)
                try:
                    yield running
                finally:
                    running.close_callers()
        finally:
            _delete()

    def _release(self, action: Any, values: dict[str, Any]) -> None:
        chart, values = _chart(self._folder, values)
        action(chart, _RELEASE, values, wait="watcher", timeout=_READY_SECONDS)

    def _open(self, forwarded: ExitStack) -> None:
        rest, grpc = forwarded.enter_context(forwarded_ports("service/edge", 8080, 8081))
        (database,) = forwarded.enter_context(forwarded_ports("service/database", 5432))
        address = f"{NAMESPACE}:{_DATABASE_PASSWORD}@127.0.0.1:{database}"
        self.ready = {
            "rest_url": f"http://127.0.0.1:{rest}",
            "grpc_addr": f"127.0.0.1:{grpc}",
            "database_url": f"postgresql://{address}/{NAMESPACE}",
            "demo": {"tokens": {"full_access": _create_api_key()}},
        }

    def upgrade(self, *names: str) -> None:
        """Upgrades the release so that all pods of these programs are replaced.

        Returns when the old pods are gone.
        """
        selector = f"app.kubernetes.io/name in ({','.join(names)})"
        old = kubectl("get", "pods", "--selector", selector, "-o", "name").split()
        values = _values()
        for name in names:
            values[name]["resources"]["requests"]["memory"] = UPGRADED_MEMORY
        self._release(self._helm.upgrade, values)
        kubectl("wait", "--for=delete", *old, _READY)

    def roll_back(self) -> None:
        """Brings back the previous revision. Does not wait for its pods."""
        self._helm.rollback(_RELEASE)

    @contextmanager
    def own_edge(self) -> Iterator[str]:
        """Runs another pod of the edge inside the block, for one test.

        Yields the pod's name for kubectl.
        """
        edge = json.loads(kubectl("get", "deployment/edge", "-o", "json"))
        template = edge["spec"]["template"]
        copy = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "own-edge", "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        }
        kubectl("create", "-f", "-", given=json.dumps(copy))
        try:
            kubectl("wait", "--for=condition=Ready", "pod/own-edge", _READY)
            yield "pod/own-edge"
        finally:
            kubectl("delete", "pod/own-edge", "--grace-period=1", "--wait=false")


def _delete() -> None:
    """Deletes the namespace. Its pods get only 1 s, so they do not wait for their callers."""
    kubectl("delete", "deployments,replicasets,jobs", "--all", "--cascade=orphan")
    kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _values() -> dict[str, Any]:
    """The values of the trial, with two workers.

    The pods request little CPU, because CI's node has only two CPUs. During a roll-out, it runs the
    old and the new pods.
    """
    values = copy.deepcopy(tools.SETS["trial"])
    values["agents"] = {"resources": {"requests": {"cpu": "10m"}}}
    for name in ("workers", "controller", "edge"):
        values[name]["resources"] = {"requests": {"cpu": "10m"}}
    values["workers"]["replicas"] = 2
    return values


def _chart(folder: Path, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The chart and its values.

    For an old cluster, the chart contains the rendered objects, patched by the overlay as `helm
    install --post-renderer` would patch them.
    """
    server = json.loads(tools.kubectl("version", "-o", "json"))["serverVersion"]
    if (int(server["major"]), int(server["minor"].rstrip("+"))) >= _GRPC_PROBES:
        return str(tools.CHART), values
    patched, chart = folder / "patched", folder / "chart"
    shutil.copytree(_OLD, patched, dirs_exist_ok=True)
    (patched / "objects.yaml").write_text(yaml.safe_dump_all(tools.render(values)))
    (chart / "templates").mkdir(parents=True, exist_ok=True)
    (chart / "Chart.yaml").write_text(f"{{apiVersion: v2, name: {_RELEASE}, version: 0.0.0}}")
    (chart / "templates" / "all.yaml").write_text(tools.kubectl("kustomize", str(patched)))
    return str(chart), {}


@contextmanager
def _described() -> Iterator[None]:
    """Adds the status and the logs of the pods to an exception that the block raises."""
    try:
        yield
    except Exception as error:
        error.add_note(kubectl("get", "pods", "-o", "wide"))
        error.add_note(
            kubectl("logs", "--selector", "app.kubernetes.io/name", "--prefix", "--ignore-errors")
        )
        raise


def _create_keys(folder: Path) -> None:
    (folder / "control-plane.jwk").write_text(new_key())
    issue = tools.DEPLOY / "trial" / "issue.py"
    subprocess.run([sys.executable, str(issue)], cwd=folder, check=True, timeout=30)
    files = (f"--from-file={folder / name}" for name in ("control-plane.jwk", "jwks.json"))
    kubectl("create", "secret", "generic", "control-plane-key", *files)


def _create_api_key() -> str:
    command = "evershell keys create --org new --create-org acme --template full_access"
    return kubectl("exec", "deploy/workers", "--", *command.split()).strip()


@contextmanager
def forwarded_ports(target: str, *ports: int) -> Iterator[list[int]]:
    """Local ports that lead to the ports of a Service or a pod. kubectl chooses the local ports."""
    arguments = ("--address=127.0.0.1", target, *(f":{port}" for port in ports))
    command = tools.kubectl_command("-n", NAMESPACE, "port-forward", *arguments)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        local = []
        for _ in ports:
            line = process.stdout.readline()
            found = re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> \d+\n", line)
            assert found is not None, line
            local.append(int(found[1]))
        # kubectl prints a line for each connection, and would block when the pipe is full.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield local
    finally:
        process.terminate()
        process.wait(10)
