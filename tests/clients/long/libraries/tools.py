"""The generator of Python clients, which the tests install from PyPI."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.npm import RUN_SECONDS

PROGRAMS = Path(__file__).with_name("programs")
PYTHON_GENERATOR = "openapi-python-client==0.29.1"
INSTALL_SECONDS = 300


def generate_python_client(document: Path, package: Path) -> None:
    """Generates a client with openapi-python-client. Skips the test without a registry."""
    uv = str(Path(sys.executable).with_name("uv"))
    config = package.parent / "generator.yaml"
    config.write_text("post_hooks: []\n")
    tool = [uv, "tool", "run", "--quiet", PYTHON_GENERATOR]
    installed = subprocess.run(
        [*tool, "--version"],
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if installed.returncode:
        pytest.skip(f"uv cannot install {PYTHON_GENERATOR}: {installed.stderr[-500:]}")
    options = ["--meta", "none", "--fail-on-warning", "--config", str(config)]
    options += ["--output-path", str(package)]
    done = subprocess.run(
        [*tool, "generate", "--path", str(document), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
