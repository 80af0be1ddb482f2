"""The Compose file, run by Docker as docs/operating.md says."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.long.manifests import tools
from tests.support import documents
from tests.support.edge.certificates import Authority
from tests.support.ports import free_ports
from tests.support.service import Service, ServiceWorkspace
from tests.support.stack import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

FILE = tools.DEPLOY / "compose" / "compose.yaml"
PAGE = ROOT / "docs" / "operating.md"
# Differs from the project name in the file, which another stack on this machine may use.
PROJECT = "evershell-test"
# CI machines may be slow.
LIMIT_SECONDS = 120.0


class ContainerWorkspace(ServiceWorkspace):
    """A workspace in the containers."""

    limit_seconds = LIMIT_SECONDS


class Containers(Service):
    """The containers of the Compose file, in a copy of its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder / "deploy" / "compose"
        self.folder.mkdir(parents=True)
        shutil.copy(FILE, self.folder)
        self._blocks = documents.blocks(PAGE.read_text())
        rest, grpc = free_ports(2)
        self._environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "REST_PORT": str(rest),
            "GRPC_PORT": str(grpc),
        }
        self.ready = {"rest_url": f"http://127.0.0.1:{rest}", "grpc_addr": f"127.0.0.1:{grpc}"}

    def start_as_documented(self) -> None:
        """Runs the commands of docs/operating.md. The last one prints an API key."""
        (commands,) = [each.text for each in self._blocks if "compose up" in each.text]
        key = self.run("bash", "-ec", commands, folder=self.folder.parents[1]).strip()
        self.ready["demo"] = {"tokens": {"full_access": key}}

    def serve_other_machines(self, authority: Authority) -> None:
        """Adds a certificate, and the Compose override that docs/operating.md shows."""
        (override,) = [each.text for each in self._blocks if each.language == "yaml"]
        (self.folder / "compose.override.yaml").write_text(override)
        tls, issued = self.folder / "tls", authority.issue("edge")
        tls.mkdir()
        shutil.copy(issued.cert_file, tls / "cert.pem")
        shutil.copy(issued.key_file, tls / "key.pem")

    def tls_client(self, authority: Authority) -> httpx.Client:
        """An HTTP client that trusts only this authority."""
        return httpx.Client(
            base_url=self.ready["rest_url"].replace("http:", "https:"),
            headers={"authorization": f"Bearer {self.tokens['full_access']}"},
            verify=ssl.create_default_context(cafile=str(authority.ca_file)),
            trust_env=False,
        )

    def create_file(self, workspace: ServiceWorkspace, name: str) -> None:
        """Creates a file in the folder of the workspace's files, where its tools run."""
        path = f"/var/lib/evershell/pods/{workspace.id}/files/{name}"
        self.compose("exec", "--no-TTY", "evershell", "touch", path)

    def compose(self, *arguments: str) -> str:
        return self.run("docker", "compose", *arguments, folder=self.folder)

    def run(self, *command: str, folder: Path) -> str:
        """Runs a command and returns its output."""
        done = subprocess.run(
            command,
            cwd=folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self._logs()}"
        return done.stdout

    def _logs(self) -> str:
        command = ["docker", "compose", "logs", "--no-color", "--tail=30"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        ).stdout


def refusal() -> str:
    """Why the Compose file cannot be run here; empty if it can be run."""
    if shutil.which("docker") is None:
        return "Docker is not installed"
    if not succeeds("docker", "compose", "version"):
        return "Docker has no Compose"
    if not succeeds("docker", "info"):
        return "no Docker Engine runs"
    services = yaml.safe_load(FILE.read_text())["services"]
    for image in sorted(service["image"] for service in services.values()):
        if not succeeds("docker", "image", "inspect", image):
            return f"the Docker Engine has no image {image}"
    return ""


def succeeds(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=False)
    return done.returncode == 0


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    if reason := refusal():
        pytest.skip(reason)
    running = Containers(tmp_path)
    try:
        yield running
    finally:
        running.close_callers()
        running.compose("down", "--volumes")


def cancel_over_rest(workspace: ServiceWorkspace) -> str:
    return str(workspace.cancel(reason="enough")["outcome"])


def cancel_over_grpc(workspace: ServiceWorkspace) -> str:
    call = workspace.service.grpc().call
    return str(call("CancelTask", workspace_id=workspace.id, reason="enough")["outcome"])


def assert_cancelled_after_its_iteration(workspace: ServiceWorkspace, task_id: str) -> None:
    """Checks that the task ended cancelled when its first command had finished."""
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["reason"]) == ("cancelled", 1, "enough")
    iteration = workspace.await_event("iteration_completed", task_id)["iteration_completed"]
    assert iteration["tool_call"]["result"]["output"] == "finished\n"


def test_tasks_are_cancelled_and_data_outlives_the_containers(
    containers: Containers, tmp_path: Path
) -> None:
    containers.start_as_documented()
    workspace, ended = ContainerWorkspace(containers), {}
    for name, cancel in {"rest": cancel_over_rest, "grpc": cancel_over_grpc}.items():
        task_id = workspace.begin(f"until [ -e {name} ]; do sleep 0.1; done; echo finished", "ls")
        assert cancel(workspace) == "accepted"
        containers.create_file(workspace, name)
        assert_cancelled_after_its_iteration(workspace, task_id)
        ended[task_id] = "cancelled"
    following = workspace.submit("echo $((6 * 7))")
    ended[following] = workspace.await_end(following)["status"]
    assert ended[following] == "completed"
    accepted = workspace.begin("sleep 100")
    assert workspace.cancel()["outcome"] == "accepted"
    ended[accepted] = "cancelled"

    containers.close_callers()
    containers.compose("down")
    assert containers.compose("ps", "--all", "--quiet") == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(containers.ready["rest_url"], trust_env=False)

    authority = Authority(tmp_path, "authority")
    containers.serve_other_machines(authority)
    containers.compose("up", "--detach", "--wait")
    with containers.tls_client(authority) as client:

        def statuses() -> dict[str, str]:
            tasks = client.get(f"{workspace.path}/tasks").raise_for_status().json()["tasks"]
            return {task["id"]: task["status"] for task in tasks}

        eventually(lambda: statuses() == ended, LIMIT_SECONDS)
