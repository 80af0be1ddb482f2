"""The overlay `local` of deploy/ on a cluster, applied as deploy/README.md says."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from evershell.auth.signing_keys import new_key
from tests.deploy.long.manifests import tools
from tests.support.service import Service

NAMESPACE = "evershell"
# The first version with gRPC probes, which the overlay needs.
_GRPC_PROBES = (1, 24)
_OLD = Path(__file__).parent / "overlay"
_READY = "--timeout=200s"
_WORKERS = 2
_DATABASE_PASSWORD = "evershell"


def kubectl(*arguments: str, given: str = "") -> str:
    """Runs kubectl in the namespace of the deployment."""
    return tools.kubectl("--namespace", NAMESPACE, *arguments, given=given)


class Deployment(Service):
    """The programs in the cluster, and forwarded ports of the edge and the database."""

    @classmethod
    @contextmanager
    def applied(cls, folder: Path) -> Iterator["Deployment"]:
        """Creates the namespace, which must not exist, and deletes it afterwards."""
        kubectl("create", "namespace", NAMESPACE)
        try:
            _create_keys(folder)
            kubectl("apply", "-k", str(_overlay()))
            kubectl("scale", "deployment/workers", f"--replicas={_WORKERS}")
            _await_ready()
            with ExitStack() as forwarded:
                running = cls()
                running._open(forwarded)
                try:
                    yield running
                finally:
                    running.close_callers()
        finally:
            _delete()

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

    def restart(self, *names: str) -> None:
        """Replaces all pods of these programs. Returns when the old ones are gone."""
        selector = f"app.kubernetes.io/name in ({','.join(names)})"
        old = kubectl("get", "pods", "--selector", selector, "-o", "name").split()
        kubectl("rollout", "restart", *_deployments(names))
        _await_rollout(names)
        kubectl("wait", "--for=delete", *old, _READY)

    @contextmanager
    def own_edge(self) -> Iterator[str]:
        """A ready pod like those of the edge, for one test. Yields its name for kubectl."""
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
    """Deletes the namespace, without the pauses in which programs wait for their callers."""
    kubectl("delete", "deployments,replicasets,jobs", "--all", "--cascade=orphan")
    kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _overlay() -> Path:
    server = json.loads(tools.kubectl("version", "-o", "json"))["serverVersion"]
    version = (int(server["major"]), int(server["minor"].rstrip("+")))
    return _OLD if version < _GRPC_PROBES else tools.DEPLOY / "overlays" / "local"


def _await_ready() -> None:
    try:
        kubectl("wait", "--for=condition=complete", "job/migrate", _READY)
        _await_rollout(("database", "workers", "controller", "edge"))
    except AssertionError as error:
        error.add_note(kubectl("get", "pods", "-o", "wide"))
        error.add_note(
            kubectl("logs", "--selector", "app.kubernetes.io/name", "--prefix", "--ignore-errors")
        )
        raise


def _await_rollout(names: Sequence[str]) -> None:
    for deployment in _deployments(names):
        kubectl("rollout", "status", deployment, _READY)


def _deployments(names: Sequence[str]) -> list[str]:
    return [f"deployment/{name}" for name in names]


def _create_keys(folder: Path) -> None:
    (folder / "control-plane.jwk").write_text(new_key())
    issue = tools.DEPLOY / "overlays" / "local" / "issue.py"
    subprocess.run([sys.executable, str(issue)], cwd=folder, check=True, timeout=30)
    files = (f"--from-file={folder / name}" for name in ("control-plane.jwk", "jwks.json"))
    kubectl("create", "secret", "generic", "control-plane-key", *files)


def _create_api_key() -> str:
    command = "evershell keys create --org new --create-org acme --template full_access"
    return kubectl("exec", "deploy/workers", "--", *command.split()).strip()


@contextmanager
def forwarded_ports(target: str, *ports: int) -> Iterator[list[int]]:
    """Local ports that lead to those of a Service or a pod. kubectl chooses free ones."""
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
        # It prints a line for each connection, and would wait for a reader of a full pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield local
    finally:
        process.terminate()
        process.wait(10)
