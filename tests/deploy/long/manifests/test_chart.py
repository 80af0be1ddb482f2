"""The chart: its values, its objects, and what deploy/README.md says about it."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evershell.app.settings import Settings
from evershell.fleet.kubernetes.objects import PodTemplate
from tests.deploy.long.manifests import tools
from tests.support.alerts import ALERTS, DASHBOARD, SPEC
from tests.support.stack import ROOT

helm = pytest.importorskip("helm_python", reason="run `make .venv/.deploy-ready`")
pytestmark = pytest.mark.usefixtures("kubernetes_tools")


def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = helm.lint(tools.CHART, values, strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"worker": {}}, "additional properties 'worker' not allowed"),
        ({"settings": {"MODLE": "a"}}, "additional properties 'MODLE' not allowed"),
        # The setting belongs in a Secret, so it must not be a value.
        ({"settings": {"DATABASE_URL": "a"}}, "additional properties 'DATABASE_URL' not allowed"),
        # The chart itself sets SERVER_PORT.
        ({"settings": {"SERVER_PORT": 1}}, "additional properties 'SERVER_PORT' not allowed"),
        ({"settings": {"POOL_SIZE": "many"}}, "/settings/POOL_SIZE': got string, want integer"),
        ({"settings": {"LOG_LEVEL": "info"}}, "value must be one of 'DEBUG', 'INFO'"),
        ({"image": {"digest": "1.2.0"}}, "/image/digest': '1.2.0' does not match pattern"),
        ({"workers": {"replicas": 0}}, "/workers/replicas': minimum: got 0, want 1"),
        ({"quota": {"agents": {"pods": 9}}}, "quota.agents needs priorityClassName"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(message)):
        tools.templates(values)


def test_the_commands_of_the_notes_are_those_of_the_readme() -> None:
    readme = " ".join(tools.README.read_text().replace("$WORKSPACE", "WORKSPACE").split())
    paragraphs = tools.templates({})["NOTES.txt"].split("\n\n")
    commands = [" ".join(each.split()) for each in paragraphs if each.startswith("  ")]
    assert len(commands) == 3
    assert [each for each in commands if each not in readme] == []


def test_numbers_are_settings_as_the_programs_read_them() -> None:
    values = {"settings": {"TOOL_MEMORY_MB": 1_000_000, "RATE_LIMIT": False, "LEASE_SECONDS": 12.5}}
    found = tools.config_map(tools.render(values), "settings")
    assert (found["TOOL_MEMORY_MB"], found["RATE_LIMIT"]) == ("1000000", "false")
    assert found["LEASE_SECONDS"] == "12.5"


def test_a_name_of_digits_is_a_text() -> None:
    """`123` is a valid name of a namespace, a Secret and a PriorityClass."""
    name = "123"
    values = {
        "imagePullSecret": name,
        "secrets": dict.fromkeys(
            ("database", "databaseOwner", "controlPlaneKey", "model", "spans"), name
        ),
        "externalSecrets": {"paths": {name: name}},
        "edge": {"tlsSecret": name},
        "priorityClassName": name,
        "quota": {"agents": {"pods": 9}},
        "monitoring": {"enabled": True, "namespace": name},
    }
    text = json.dumps(tools.render(values))
    assert text.count(f'"{name}"') > 20
    assert not re.search(rf"[:\[] ?{name}\b", text)


def test_the_hook_migrates_with_the_settings_of_the_programs() -> None:
    objects = {(o["kind"], o["metadata"]["name"]): o for o in tools.render(tools.SETS["trial"])}
    (container,) = objects["Job", "migrate"]["spec"]["template"]["spec"]["containers"]
    # The hook takes its settings from the Secrets and from `env`. It cannot use other objects of
    # the release: when it runs, they do not exist yet or belong to the previous version.
    assert [list(each) for each in container["envFrom"]] == [["secretRef"], ["secretRef"]]
    settings = {each["name"]: each["value"] for each in container["env"]}
    assert settings == objects["ConfigMap", "settings"]["data"]


def test_the_alerts_and_the_dashboard_are_those_of_the_repository() -> None:
    objects = tools.render({"monitoring": {"enabled": True, "labels": {"release": "a"}}})
    kinds = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    assert kinds["PrometheusRule", "evershell"]["spec"] == SPEC
    assert kinds["PrometheusRule", "evershell"]["metadata"]["labels"] == {"release": "a"}
    assert json.loads(kinds["ConfigMap", "dashboard"]["data"]["dashboard.json"]) == DASHBOARD


def test_alerts_lead_to_the_runbooks_that_the_values_name() -> None:
    page = "https://wiki.example/evershell/runbooks.html"
    objects = tools.render({"monitoring": {"enabled": True, "runbooks": page}})
    (spec,) = [o["spec"] for o in objects if o["kind"] == "PrometheusRule"]
    rules = [rule for group in spec["groups"] for rule in group["rules"] if "alert" in rule]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}
    assert urls == {name: f"{page}#{name.lower()}" for name in ALERTS}


def test_the_route_leads_every_grpc_service_of_the_edge_to_its_port() -> None:
    values = {"httpRoute": {"parentRefs": [{"name": "gateway"}]}}
    (route,) = [o["spec"] for o in tools.render(values) if o["kind"] == "HTTPRoute"]
    grpc, rest = route["rules"]
    assert [each["backendRefs"][0]["port"] for each in (grpc, rest)] == [8081, 8080]
    routes = (ROOT / "gen" / "evershell" / "edge" / "routes.json").read_text()
    services = set(re.findall(r'"(/[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+)/(?:[A-Z]|")', routes))
    assert {each["path"]["value"] for each in grpc["matches"]} == services


def test_a_change_of_the_settings_replaces_the_pods() -> None:
    def annotations(**settings: Any) -> list[Any]:
        objects = tools.render({"settings": settings})
        deployments = [o["spec"] for o in objects if o["kind"] == "Deployment"]
        return [each["template"]["metadata"]["annotations"] for each in deployments]

    assert annotations() == annotations()
    assert all(a != b for a, b in zip(annotations(), annotations(POOL_SIZE=5), strict=True))


def test_the_manifests_for_kustomize_are_those_of_the_chart() -> None:
    command = [sys.executable, ".make/chart.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def own(kubernetes_tools: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The kustomization that deploy/README.md shows."""
    folder = tmp_path_factory.mktemp("copy")
    (folder / "deploy").symlink_to(tools.DEPLOY)
    (folder / "mine").mkdir()
    (folder / "mine" / "kustomization.yaml").write_text(tools.KUSTOMIZATION)
    return list(yaml.safe_load_all(tools.kubectl("kustomize", str(folder / "mine"))))


def test_the_kustomization_of_the_readme_fits_the_schemas_and_sets_one_image(
    own: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(own))
    tools.validate(path)
    settings = tools.config_map(own, "settings")
    specs = [o["spec"]["template"]["spec"] for o in own if o["kind"] in ("Deployment", "Job")]
    images = {each["image"] for spec in specs for each in spec["containers"]}
    assert images == {settings["POD_IMAGE"]}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    Settings.read()


def test_the_template_of_the_agents_is_valid() -> None:
    values = {"imagePullSecret": "registry", "agents": {"pod": {"runtimeClassName": "gvisor"}}}
    data = tools.config_map(tools.render(values), "agents")
    found = PodTemplate(image="agent:1", command=[], **yaml.safe_load(data["agents.yaml"]))
    more = {"imagePullSecrets": [{"name": "registry"}], "runtimeClassName": "gvisor"}
    assert found == PodTemplate(image="agent:1", command=[], pod=more)


def test_the_first_step_of_an_upgrade_with_kustomize_has_what_the_migration_needs(
    own: list[dict[str, Any]],
) -> None:
    (labels,) = re.findall(r"-l 'app.kubernetes.io/name in \((.*)\)'", tools.README.read_text())
    applied = [
        each
        for each in copy.deepcopy(own)
        if each["metadata"].get("labels", {}).get("app.kubernetes.io/name") in labels.split(", ")
    ]
    assert {each["kind"] for each in applied} == {"ConfigMap", "Job"}
    (job,) = [each for each in applied if each["kind"] == "Job"]
    generated = {(each["kind"], each["metadata"]["name"]) for each in own}
    found = {(each["kind"], each["metadata"]["name"]) for each in applied}
    assert needed(job["spec"]["template"]["spec"]) & generated <= found


def test_the_readme_names_every_secret_that_has_to_exist() -> None:
    text = tools.README.read_text()
    listed = set(re.findall(r"^\| `([a-z-]+)` \| ", text, re.MULTILINE))
    created = set(re.findall(r"create secret [a-z-]+ ([a-z-]+)", text))
    for each in tools.render(tools.SETS["production"]):
        if each["kind"] in ("Deployment", "Job"):
            for kind, name in needed(each["spec"]["template"]["spec"]):
                if kind == "Secret":
                    assert name in listed & created


def needed(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """The kinds and names of the ConfigMaps and Secrets without which the pod does not start."""
    (container,) = spec["containers"]
    sources = [
        (kind, source[key])
        for source in container.get("envFrom", ())
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
        if key in source
    ]
    return (
        {(kind, ref["name"]) for kind, ref in sources if not ref.get("optional")}
        | {
            ("Secret", volume["secret"]["secretName"])
            for volume in spec["volumes"]
            if "secret" in volume
        }
        | {("Secret", each["name"]) for each in spec.get("imagePullSecrets", ())}
    )
