"""The chart's objects: schemas, restrictions, roll-outs, and whether an API server accepts them."""

import copy
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from evershell.app.settings import AGENT_PORT_DISTANCE, Settings
from evershell.app.worker import DRAIN_SECONDS
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.cli.values import DURATION
from evershell.core.cancel_task import MAX_WAIT_SECONDS
from evershell.core.runtime import AgentIdentity
from evershell.fleet.kubernetes import objects
from evershell.fleet.kubernetes.api import ApiError
from evershell.fleet.kubernetes.kubernetes_pods import KubernetesPods
from tests.contracts.kubernetes_case import END_SECONDS, TEMPLATE, KubernetesCase
from tests.deploy.long.manifests import tools
from tests.support import world
from tests.support.kubernetes import LIMIT_SECONDS, new_namespace, require_cluster
from tests.support.small_agent import spec_for

pytestmark = pytest.mark.usefixtures("kubernetes_tools")

# How long the command of a preStop hook may take to start.
START_SECONDS = 5.0
# The types of volumes that the Pod Security Standard `restricted` allows.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
# The port on which workers accept only agents.
RUNTIME_PORT = 50151
# How long a cluster's DNS caches an answer (kubeadm's default).
DNS_SECONDS = 30
# How often the edge queries this DNS.
REFRESH_SECONDS = 2
# The settings that the programs get from Secrets. They get all others from a ConfigMap.
SECRETS = {"DATABASE_URL": "postgresql://database/evershell"}


def pod_specs(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in found:
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


def agent_objects() -> list[dict[str, Any]]:
    workspace = world.workspace(epoch=3, run_id="run_1")
    pod = objects.pod(workspace, TEMPLATE)
    spec = spec_for(AgentIdentity(workspace.id, workspace.epoch))
    owner = {"metadata": {"name": pod["metadata"]["name"], "uid": "u1"}}
    return [
        pod,
        objects.secret(workspace, spec, owner),
        objects.claim(workspace, TEMPLATE),
    ]


@pytest.mark.parametrize("version", tools.VERSIONS)
def test_the_objects_fit_the_schemas(version: str, tmp_path: Path) -> None:
    rendered = [each for values in tools.SETS.values() for each in tools.render(values)]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(o for o in rendered if o["kind"] not in tools.FOREIGN_KINDS))
    tools.validate(path, version)


def test_the_objects_of_a_workspace_fit_the_schemas(tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(agent_objects()))
    tools.validate(path)


def assert_restricted(name: str, spec: dict[str, Any]) -> None:
    """Checks the Pod Security Standard `restricted`.

    Also checks that the root file system is read-only, and that memory has a limit.
    """
    assert spec["securityContext"]["runAsNonRoot"] is True, name
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
    for volume in spec.get("volumes", ()):
        assert set(volume) - {"name"} <= VOLUMES, name
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert "memory" in container["resources"]["limits"], name


def test_every_pod_is_restricted(rendered: list[dict[str, Any]]) -> None:
    found = list(pod_specs(rendered))
    assert {"workers", "controller", "edge", "migrate", "test"} == {name for name, _ in found}
    for name, spec in found:
        assert_restricted(name, spec)
        # Only the controller calls the API server.
        assert spec["automountServiceAccountToken"] is (name == "controller"), name
    assert_restricted("agent", agent_objects()[0]["spec"])
    assert agent_objects()[0]["spec"]["automountServiceAccountToken"] is False


def test_the_roll_out_of_workers_leaves_time_to_find_and_to_drain_them() -> None:
    found = tools.render({})
    (workers,) = [
        o["spec"] for o in found if o["kind"] == "Deployment" and o["metadata"]["name"] == "workers"
    ]
    assert workers["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    spec = workers["template"]["spec"]
    (container,) = spec["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause >= DNS_SECONDS + REFRESH_SECONDS
    assert spec["terminationGracePeriodSeconds"] >= pause + DRAIN_SECONDS + REFRESH_SECONDS


def test_the_settings_are_valid(
    rendered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings_of(rendered)
    for name, value in (found | SECRETS).items():
        monkeypatch.setenv(name, value)
    settings = Settings.read()
    assert settings.agent_tls
    assert settings.server_port + AGENT_PORT_DISTANCE == RUNTIME_PORT
    assert settings.runtime_addresses == [f"workers:{RUNTIME_PORT}"]
    assert settings.state_dir == Path("/etc/evershell")


async def test_a_session_token_of_the_trial_is_valid(tmp_path: Path) -> None:
    """In the trial, workers read the JWK set from the file that deploy/trial/issue.py makes."""
    rendered = tools.render(tools.SETS["trial"])
    found = settings_of(rendered)
    spec = dict(pod_specs(rendered))["workers"]
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "keys"]
    assert volume["secret"]["secretName"] == "control-plane-key"
    assert found["JWKS"] == f"{mount['mountPath']}/jwks.json"

    def issue(*arguments: str) -> str:
        command = [sys.executable, str(tools.DEPLOY / "trial" / "issue.py"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert issue() == ""
    published = (tmp_path / "jwks.json").read_text()
    token = issue("org_1", "alice", "org:hold")
    assert (tmp_path / "jwks.json").read_text() == published
    assert (tmp_path / "provider.jwk").stat().st_mode & 0o077 == 0
    sessions = SessionTokens(
        JwkSet(str(tmp_path / "jwks.json")), found["JWT_ISSUER"], Settings().jwt_audience
    )
    caller = await sessions.authenticate(token)
    assert (caller.org_id, caller.user_id) == ("org_1", "alice")


def served(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the objects, without the kinds and fields that this API server is too old to support.

    An old API server does not serve the current versions of autoscalers and disruption budgets. It
    supports neither gRPC probes nor a probe's grace period.
    """
    names = set(tools.kubectl("api-versions").split())
    found = [o for o in rendered if o["apiVersion"] in names]
    if "autoscaling/v2" not in names:
        for _, spec in pod_specs(found):
            for container in spec["containers"]:
                for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                    probe = container.get(name, {})
                    probe.pop("terminationGracePeriodSeconds", None)
                    if probe.pop("grpc", None):
                        probe["tcpSocket"] = {"port": "grpc"}
    return found


@pytest.fixture
def priority_class(values: dict[str, Any]) -> Iterator[None]:
    """Creates the PriorityClass that the values name.

    The API server refuses pods if their class does not exist.
    """
    require_cluster()
    if name := values.get("priorityClassName"):
        tools.kubectl("create", "priorityclass", name, "--value=1")
    yield
    if name:
        tools.kubectl("delete", "priorityclass", name)


@pytest.mark.usefixtures("priority_class")
async def test_a_real_api_server_accepts_the_objects(rendered: list[dict[str, Any]]) -> None:
    async with new_namespace() as api:
        found = served(copy.deepcopy(rendered))
        for each in found:
            each["metadata"]["namespace"] = api.namespace
        objects_ = yaml.safe_dump_all(found)
        said = tools.kubectl("apply", "--dry-run=server", "-f", "-", given=objects_)
    assert said.count("(server dry run)") == len(found)
    assert {"Deployment", "Job", "NetworkPolicy", "Pod", "Role"} <= {o["kind"] for o in found}


class As(httpx2.AsyncHTTPTransport):
    """Makes requests as a service account, by impersonation."""

    def __init__(self, namespace: str, account: str) -> None:
        super().__init__(verify=False)
        self._user = f"system:serviceaccount:{namespace}:{account}"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["impersonate-user"] = self._user
        return await super().handle_async_request(request)


@pytest.fixture
async def case() -> AsyncIterator[KubernetesCase]:
    """A namespace with the chart's service accounts and their rights."""
    async with KubernetesCase.open() as case:
        rights = [
            o for o in tools.render({}) if o["kind"] in ("ServiceAccount", "Role", "RoleBinding")
        ]
        for each in rights:
            each["metadata"]["namespace"] = case.api.namespace
            for subject in each.get("subjects", ()):
                subject["namespace"] = case.api.namespace
        tools.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(rights))
        yield case


async def test_the_controllers_role_is_enough_and_no_more(case: KubernetesCase) -> None:
    transport = As(case.api.namespace, "controller")
    async with KubernetesPods.open(
        case.api.namespace, TEMPLATE, spec_for, end_seconds=END_SECONDS, transport=transport
    ) as pods:
        await pods.sync()
        workspace = world.workspace(epoch=3, run_id=pods.run_id)
        await pods.start(workspace)
        await pods.start(workspace)
        assert pods.was_started(workspace)
        assert await pods.end(workspace, 0) is True
        for kind in ("configmaps", "serviceaccounts", "secrets"):
            with pytest.raises(ApiError, match="forbidden"):
                await pods._api.list(kind, LIMIT_SECONDS)
        with pytest.raises(ApiError, match="forbidden"):
            await pods._api._call("GET", "api/v1/namespaces/default/pods", LIMIT_SECONDS)


async def test_other_service_accounts_have_no_rights(case: KubernetesCase) -> None:
    transport = As(case.api.namespace, "evershell")
    with pytest.raises(ApiError, match="forbidden"):
        async with KubernetesPods.open(case.api.namespace, TEMPLATE, spec_for, transport=transport):
            pass


def of_kind(rendered: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in rendered if each["kind"] == kind}


def pod_spec(rendered: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(rendered, "Deployment")[name]["spec"]["template"]["spec"]
    return found


def settings_of(rendered: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = of_kind(rendered, "ConfigMap")["settings"]["data"]
    return found


def test_an_edge_drains_for_longer_than_a_wait_before_it_ends(
    rendered: list[dict[str, Any]],
) -> None:
    spec = pod_spec(rendered, "edge")
    (container,) = spec["containers"]
    program, command, *options = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, command) == ("evershell", "edge")
    values = dict(zip(options[::2], options[1::2], strict=True))
    drain_seconds = DURATION.convert(values["--drain"], None, None)
    assert drain_seconds > MAX_WAIT_SECONDS
    assert spec["terminationGracePeriodSeconds"] >= drain_seconds + START_SECONDS
    socket = Path(values["--admin-socket"])
    assert container["args"] == ["edge", "--admin-socket", str(socket), "edge-workers:50051"]
    assert str(socket.parent) in [each["mountPath"] for each in container["volumeMounts"]]


def test_apply_leaves_the_number_of_workers_to_the_autoscaler(
    rendered: list[dict[str, Any]],
) -> None:
    """If the chart set `replicas`, upgrades would remove workers that the autoscaler has added."""
    scalers = of_kind(rendered, "HorizontalPodAutoscaler").values()
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in scalers}
    for name, deployment in of_kind(rendered, "Deployment").items():
        assert ("replicas" not in deployment["spec"]) is (name in scaled), name
