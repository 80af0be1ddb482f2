"""Builds the distribution, and installs it in an environment of its own."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.stack import ROOT

# Where the packages of the distribution are in a checkout.
PARTS = ("server/evershell", "client/evershell", "gen/evershell", "envoy/evershell")


def build(folder: Path, source: Path = ROOT) -> tuple[Path, Path]:
    """Builds the wheel and the sdist. Returns their paths."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def packaged(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, without its metadata."""
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
    """A virtual environment with only the distribution and its dependencies, in locked versions."""

    def __init__(self, folder: Path, wheel: Path, extras: str = "") -> None:
        self.folder = folder
        self._uv("venv", "-q", "--python", sys.executable, str(folder))
        locked = ["-c", str(ROOT / "requirements.txt")]
        requirement = f"evershell[{extras}] @ {wheel.as_uri()}"
        self._uv("pip", "install", "-q", "--python", str(self.python), *locked, requirement)

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "bin" / "python"

    def run(self, program: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Runs a program of the environment."""
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _uv(self, *arguments: str) -> None:
        program = Path(sys.executable).with_name("uv")
        # The environment of the tests is not the one to install into. uv leaves locks in TMPDIR.
        variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        variables["TMPDIR"] = str(self.folder.parent)
        done = subprocess.run(
            [str(program), *arguments], env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
