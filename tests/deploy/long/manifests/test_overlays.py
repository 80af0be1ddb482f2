"""What the rendered overlays promise: roll-outs, upgrades, and the overlay in deploy/README.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evershell.api.health import LIVENESS
from evershell.app.settings import Settings
from evershell.cli.duration import DURATION
from evershell.core.cancel_task import MAX_WAIT_SECONDS
from tests.deploy.long.manifests import tools
from tests.support.documents import blocks

pytestmark = pytest.mark.usefixtures("kubernetes_tools")

README = tools.DEPLOY / "README.md"
# How long the command of a preStop may take to start.
START_SECONDS = 5.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The overlay that deploy/README.md shows."""
    folder = tmp_path_factory.mktemp("copy")
    (folder / "deploy").symlink_to(tools.DEPLOY)
    (folder / "mine").mkdir()
    (shown,) = [each.text for each in blocks(README.read_text()) if each.language == "yaml"]
    (folder / "mine" / "kustomization.yaml").write_text(shown)
    return list(yaml.safe_load_all(tools.kubectl("kustomize", str(folder / "mine"))))


def of_kind(overlay: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind, by name; without the hash of a generated name."""
    return {
        re.sub(r"-[0-9a-z]{10}$", "", each["metadata"]["name"]): each
        for each in overlay
        if each["kind"] == kind
    }


def pod_spec(overlay: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]
    return found


def pod_specs(overlay: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in overlay:
        if each["kind"] in ("Deployment", "Job"):
            yield each["spec"]["template"]["spec"]


def settings_of(overlay: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = of_kind(overlay, "ConfigMap")["settings"]["data"]
    return found


def needed(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """The kinds and names of the ConfigMaps and Secrets without which the pod does not start."""
    (container,) = spec["containers"]
    sources = [
        (kind, source[key])
        for source in container.get("envFrom", ())
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
        if key in source
    ]
    return {(kind, ref["name"]) for kind, ref in sources if not ref.get("optional")} | {
        ("Secret", volume["secret"]["secretName"])
        for volume in spec["volumes"]
        if "secret" in volume
    }


def test_an_edge_drains_for_longer_than_a_wait_before_it_ends(
    overlay: list[dict[str, Any]],
) -> None:
    spec = pod_spec(overlay, "edge")
    (container,) = spec["containers"]
    program, command, *options = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, command) == ("evershell", "edge")
    values = dict(zip(options[::2], options[1::2], strict=True))
    drain_seconds = DURATION.convert(values["--drain"], None, None)
    assert drain_seconds > MAX_WAIT_SECONDS
    assert spec["terminationGracePeriodSeconds"] >= drain_seconds + START_SECONDS
    socket = Path(values["--admin-socket"])
    assert container["args"] == ["edge", "--admin-socket", str(socket)]
    assert str(socket.parent) in [each["mountPath"] for each in container["volumeMounts"]]


def test_a_new_edge_has_a_worker_and_an_edge_without_workers_still_answers(
    overlay: list[dict[str, Any]],
) -> None:
    (container,) = pod_spec(overlay, "edge")["containers"]
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["tcpSocket"] == {"port": "rest"}


def test_the_programs_themselves_answer_their_liveness_probes(
    overlay: list[dict[str, Any]],
) -> None:
    """The kernel accepts connections for a program that is frozen."""
    for name in ("edge", "workers", "controller"):
        (container,) = pod_spec(overlay, name)["containers"]
        probe = container["livenessProbe"]
        if name == "edge":
            assert probe["httpGet"] == {"path": "/metrics", "port": "metrics"}
        else:
            assert probe["grpc"] == {"port": 50051, "service": LIVENESS}


def test_the_edge_finds_all_workers_and_agents_those_that_are_ready(
    overlay: list[dict[str, Any]],
) -> None:
    settings, services = settings_of(overlay), of_kind(overlay, "Service")
    for setting, any_worker in (("EDGE_WORKERS", True), ("RUNTIME_SERVICE", False)):
        name, _, port = settings[setting].partition(":")
        service = services[name]["spec"]
        assert service["clusterIP"] == "None"
        assert service.get("publishNotReadyAddresses", False) is any_worker
        assert service["selector"] == {"app.kubernetes.io/name": "workers"}
        assert [each["port"] for each in service["ports"]] == [int(port)]


def test_apply_leaves_the_number_of_workers_to_the_autoscaler(
    overlay: list[dict[str, Any]],
) -> None:
    """Otherwise an upgrade would take away the workers that were added."""
    scalers = of_kind(overlay, "HorizontalPodAutoscaler").values()
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in scalers}
    for name, deployment in of_kind(overlay, "Deployment").items():
        assert ("replicas" not in deployment["spec"]) is (name in scaled), name


def test_agents_do_not_use_up_what_the_control_plane_needs() -> None:
    overlay = tools.render("production")
    (priority,) = of_kind(overlay, "PriorityClass")
    for spec in pod_specs(overlay):
        assert spec["priorityClassName"] == priority
    (scope,) = of_kind(overlay, "ResourceQuota")["agents"]["spec"]["scopeSelector"][
        "matchExpressions"
    ]
    assert (scope["operator"], scope["values"]) == ("NotIn", [priority])


def test_the_first_step_of_an_upgrade_has_what_the_migration_needs(
    overlay: list[dict[str, Any]],
) -> None:
    (labels,) = re.findall(r"-l 'app.kubernetes.io/name in \((.*)\)'", README.read_text())
    applied = [
        each
        for each in overlay
        if each["metadata"].get("labels", {}).get("app.kubernetes.io/name") in labels.split(", ")
    ]
    assert {"ConfigMap", "Job"} <= {each["kind"] for each in applied}
    assert {each["kind"] for each in applied} <= {"ConfigMap", "Job", "Secret"}
    (job,) = of_kind(applied, "Job").values()
    generated = {(each["kind"], each["metadata"]["name"]) for each in overlay}
    found = {(each["kind"], each["metadata"]["name"]) for each in applied}
    assert needed(job["spec"]["template"]["spec"]) & generated <= found


def test_the_overlay_of_the_readme_fits_the_schemas(
    own: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(o for o in own if o["kind"] not in tools.OPERATOR_KINDS))
    tools.validate(path)


def test_the_overlay_of_the_readme_sets_one_image_and_valid_settings(
    own: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings_of(own)
    images = {each["image"] for spec in pod_specs(own) for each in spec["containers"]}
    assert images == {found["POD_IMAGE"]}
    default = settings_of(tools.render("production"))
    changed = {name for name, value in found.items() if default.get(name) != value}
    assert {"POD_IMAGE", "MODEL", "JWKS", "JWT_ISSUER"} <= changed
    assert default.keys() <= found.keys()
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    Settings.read()


def test_the_overlay_of_the_readme_has_tls_at_the_edge(own: list[dict[str, Any]]) -> None:
    spec = pod_spec(own, "edge")
    (container,) = spec["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "tls"]
    assert variables["TLS_CERT_FILE"] == f"{mount['mountPath']}/tls.crt"
    assert variables["TLS_KEY_FILE"] == f"{mount['mountPath']}/tls.key"
    assert volume["secret"] == {"secretName": "edge-tls", "defaultMode": 0o440}
    assert container["startupProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert "PROGRAM_MEMORY_MB" in variables


def test_the_readme_names_every_secret_that_has_to_exist(own: list[dict[str, Any]]) -> None:
    text = README.read_text()
    listed = set(re.findall(r"^\| `([a-z-]+)` \| ", text, re.MULTILINE))
    created = set(re.findall(r"create secret \w+ ([a-z-]+)", text))
    for spec in pod_specs(own):
        for kind, name in needed(spec):
            if kind == "Secret":
                assert name in listed & created
