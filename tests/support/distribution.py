"""Builds the distribution, and installs it in a separate environment."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.stack import ROOT

# The modules that the programs of a stack import.
PROGRAMS = (
    "evershell.stack.up, evershell.app.worker, evershell.app.fleet, evershell.agents.fork_server"
)
# The folders of a checkout that contain the packages of the distribution.
PARTS = ("server/evershell", "client/evershell", "gen/evershell", "envoy/evershell")


def build(folder: Path, source: Path = ROOT) -> tuple[Path, Path]:
    """Builds the wheel and the sdist. Returns their paths."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def released() -> Path:
    """Returns the wheel of the last release."""
    (wheel,) = (ROOT / "tests" / "releases").glob("*.whl")
    return wheel


def build_later(folder: Path) -> Path:
    """Builds a wheel of this checkout whose version is later than the last release.

    The wheel has one more migration, which adds a column.
    """
    source = folder / "source"
    for part in PARTS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, source / part, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    major, minor, patch = released().name.split("-")[1].split(".")
    (source / "client" / "evershell" / "version.py").write_text(
        f'VERSION = "{major}.{minor}.{int(patch) + 1}"\n'
    )
    migrations = source / "server" / "evershell" / "store" / "migrations"
    (migrations / "9999_of_a_later_version.sql").write_text(
        "ALTER TABLE workspaces ADD COLUMN of_a_later_version text;\n"
    )
    return build(folder / "dist", source)[0]


def packaged(wheel: Path) -> dict[str, bytes]:
    """Returns the files of a wheel, except for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks the sdist. Returns the folder of its project."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (project,) = folder.iterdir()
    return project


class Environment:
    """A virtual environment that contains only the distribution and its locked dependencies."""

    def __init__(
        self, folder: Path, wheel: Path, extras: str = "", like: "Environment | None" = None
    ) -> None:
        """Makes the environment. If `like` is given, reuses the files of that environment.

        `like` should have almost the same packages.
        """
        self.folder = folder
        if like is None:
            self._uv("venv", "-q", "--python", sys.executable, str(folder))
        else:
            # Makes hard links: copies would take ten times as long.
            subprocess.run(["/bin/cp", "-al", like.folder, folder], check=True)
        locked = ["-c", str(ROOT / "requirements.txt"), "--reinstall-package", "evershell"]
        requirement = f"evershell[{extras}] @ {wheel.as_uri()}"
        self._uv("pip", "install", "-q", "--python", str(self.python), *locked, requirement)
        if "local" in extras:
            # Compiles the modules once, so that programs need not do it when they start.
            code = f"import {PROGRAMS}"
            self.run("python", "-c", code, cwd=folder.parent, PYTHONDONTWRITEBYTECODE="")

    @property
    def python(self) -> Path:
        """The Python interpreter of the environment."""
        return self.folder / "bin" / "python"

    def run(
        self, program: str, *arguments: str, cwd: Path, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a program of the environment."""
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _uv(self, *arguments: str) -> None:
        program = Path(sys.executable).with_name("uv")
        # Removes VIRTUAL_ENV, so that uv does not install into the environment of the tests. Sets
        # TMPDIR, because uv leaves locks there.
        variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        variables["TMPDIR"] = str(self.folder.parent)
        done = subprocess.run(
            [str(program), *arguments], env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
