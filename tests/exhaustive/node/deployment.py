"""The overlay `local` of deploy/ on a cluster, applied as deploy/README.md says."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from evershell.server.auth.signing_keys import new_key
from tests.exhaustive.deploy import tools
from tests.support.ports import free_ports
from tests.support.service import Service

NAMESPACE = "evershell"
# The first version with gRPC probes, which the overlay needs.
_GRPC_PROBES = (1, 24)
_OLD = Path(__file__).parent / "overlay"
_READY = "--timeout=200s"
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
        rest, grpc = forwarded.enter_context(_forwarded("edge", 8080, 8081))
        (database,) = forwarded.enter_context(_forwarded("database", 5432))
        address = f"{NAMESPACE}:{_DATABASE_PASSWORD}@127.0.0.1:{database}"
        self.ready = {
            "rest_url": f"http://127.0.0.1:{rest}",
            "grpc_addr": f"127.0.0.1:{grpc}",
            "database_url": f"postgresql://{address}/{NAMESPACE}",
            "demo": {"tokens": {"full_access": _create_api_key()}},
        }

    def scale(self, name: str, replicas: int) -> None:
        """Changes the number of pods of a program."""
        kubectl("scale", f"deployment/{name}", f"--replicas={replicas}")
        kubectl("rollout", "status", f"deployment/{name}", _READY)

    @contextmanager
    def environment(self, name: str, **variables: str) -> Iterator[None]:
        """Changes the environment of a program inside the block."""
        changed = [f"{key}={value}" for key, value in variables.items()]
        self._replace("set", "env", f"deployment/{name}", *changed, names=[name])
        try:
            yield
        finally:
            removed = [f"{key}-" for key in variables]
            self._replace("set", "env", f"deployment/{name}", *removed, names=[name])

    def restart(self, *names: str) -> None:
        """Replaces all pods of these programs."""
        deployments = [f"deployment/{name}" for name in names]
        self._replace("rollout", "restart", *deployments, names=names)

    def _replace(self, *command: str, names: Sequence[str]) -> None:
        """Runs kubectl, and waits until these programs have new pods alone."""
        selector = f"app.kubernetes.io/name in ({','.join(names)})"
        old = kubectl("get", "pods", "--selector", selector, "-o", "name").split()
        kubectl(*command)
        for name in names:
            kubectl("rollout", "status", f"deployment/{name}", _READY)
        kubectl("wait", "--for=delete", *old, _READY)

    def pods(self, workspace_id: str) -> list[dict[str, Any]]:
        """The pods of the workspace."""
        label = f"evershell.ai/workspace={workspace_id}"
        return list(json.loads(kubectl("get", "pods", "-l", label, "-o", "json"))["items"])


def _delete() -> None:
    """Deletes the namespace, without the pauses in which programs wait for their callers."""
    kubectl("delete", "deployments,replicasets,jobs", "--all", "--cascade=orphan")
    kubectl("delete", "pods", "--all", "--grace-period=1", _READY)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _overlay() -> Path:
    server = json.loads(tools.kubectl("version", "-o", "json"))["serverVersion"]
    version = (int(server["major"]), int(server["minor"].rstrip("+")))
    return _OLD if version < _GRPC_PROBES else tools.DEPLOY / "overlays" / "local"


def _await_ready() -> None:
    try:
        kubectl("wait", "--for=condition=complete", "job/migrate", _READY)
        for name in ("database", "workers", "controller", "edge"):
            kubectl("rollout", "status", f"deployment/{name}", _READY)
    except AssertionError as error:
        error.add_note(kubectl("get", "pods", "-o", "wide"))
        error.add_note(
            kubectl("logs", "--selector", "app.kubernetes.io/name", "--prefix", "--ignore-errors")
        )
        raise


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
def _forwarded(service: str, *ports: int) -> Iterator[list[int]]:
    """Local ports that lead to those of the Service."""
    local = free_ports(len(ports))
    pairs = [f"{here}:{there}" for here, there in zip(local, ports, strict=True)]
    command = tools.kubectl_command("-n", NAMESPACE, "port-forward", f"service/{service}", *pairs)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in pairs:
            assert "Forwarding from" in process.stdout.readline()
        yield local
    finally:
        process.terminate()
        process.wait(10)
