"""The distribution, installed as users install it: without extras, and as a whole stack."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from tests.deploy.long.installation.installation import IMPORT, PUBLIC
from tests.support import documents
from tests.support.distribution import Environment, build, packaged, unpack
from tests.support.sandbox import has_sandbox
from tests.support.stack import ROOT, Stack

QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
# Stands in for pip. Installs the locked versions.
PIP = """
pip() {
  "$UV" pip "$1" -q --python "$VIRTUAL_ENV" -c "$LOCK" --reinstall-package evershell "${@:2}"
}
"""
LIST = "from importlib.metadata import distributions; print(*(d.name for d in distributions()))"
CALLER = """
from evershell.client import Client
from evershell.workspace.v1 import task_pb2

with Client("http://127.0.0.1:1", "sk_1") as client:
    reveal_type(client.cancel("ws_1"))
reveal_type(task_pb2.Task().iterations)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, dist: tuple[Path, Path]) -> Environment:
    return Environment(tmp_path_factory.mktemp("core") / "environment", dist[0])


class Installed(Stack):
    """The stack of the quickstart, which the command `evershell` of its environment starts."""

    makes_cluster = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / ".state")
        self._folder = folder
        self.output = folder.with_name("output")
        # Without STATE_DIR, the state folder is `.state` in the working directory.
        del self._environment["STATE_DIR"]

    @property
    def python(self) -> str:
        return str(self._folder / "environment" / "bin" / "python")

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self.output.open("ab") as output:
            return subprocess.Popen(
                [str(Path(self.python).with_name("evershell")), "up"],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=output,
            )


@pytest.fixture
def installed(tmp_path: Path, dist: tuple[Path, Path]) -> Iterator[Installed]:
    """Runs the first block of the quickstart in an empty folder, up to `evershell up`."""
    folder = tmp_path / "empty"
    folder.mkdir()
    block, up, _ = documents.blocks(QUICKSTART)[0].text.partition("evershell up\n")
    assert up
    commands = re.sub(r"(?m)^RELEASE=.*$", f"RELEASE={dist[0].parent}", block)
    own = {
        "UV": str(Path(sys.executable).with_name("uv")),
        "LOCK": str(ROOT / "requirements.txt"),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-ec", PIP + commands],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stack = Installed(folder)
    yield stack
    stack.kill_if_running()


def test_the_sdist_has_all_that_the_wheel_is_built_from(
    tmp_path: Path, dist: tuple[Path, Path]
) -> None:
    wheel, sdist = dist
    project = unpack(sdist, tmp_path / "sdist")
    top = {path.name for path in project.iterdir()}
    assert {"protos", "README.md", "LICENSE", "CHANGELOG.md"} <= top
    assert not top & {"tests", "docs", "bench.json", "Makefile"}
    rebuilt, _ = build(tmp_path / "dist", project)
    assert packaged(rebuilt) == packaged(wheel)


def test_without_extras_it_has_what_callers_need_and_no_package_of_an_extra(
    core: Environment, tmp_path: Path
) -> None:
    extras = [each for each in metadata.requires("evershell") or () if "extra ==" in each]
    of_extras = {re.split(r"[^\w-]", each)[0] for each in extras} - {"evershell"}
    installed = set(core.run("python", "-c", LIST, cwd=tmp_path).stdout.split())
    assert {"grpcio", "evershell"} <= installed and "psycopg" in of_extras
    assert not installed & of_extras
    imported = core.run("python", "-c", IMPORT, *PUBLIC, cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert "evershell.client" in imported.stdout
    version = core.run("evershell", "--version", cwd=tmp_path)
    assert version.stdout == f"evershell, version {metadata.version('evershell')}\n"
    refused = core.run("evershell", "up", cwd=tmp_path)
    assert refused.stderr.endswith("is not installed. Install the extra `local` of evershell.\n")


def test_the_library_for_agents_needs_no_extra(core: Environment, tmp_path: Path) -> None:
    """`evershell.agents` (library) and `evershell.agent` (generated messages) do not conflict."""
    program = (
        "from evershell.agents import Task, run\n"
        "from evershell.agents.program import run\n"
        "from evershell.agent.v1 import runtime_service_pb2"
    )
    imported = core.run("python", "-c", program, cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr


def test_type_checkers_read_the_types_of_an_installation(core: Environment, tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_text(CALLER)
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict"),
            *(f"--python-executable={core.python}", "--config-file=", "caller.py"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert 'Revealed type is "evershell.client' in checked.stdout
    assert 'Revealed type is "int"' in checked.stdout.replace("builtins.int", "int")


def test_the_quickstart_starts_a_stack_from_the_wheel_and_cancels_tasks(
    installed: Installed, tmp_path: Path
) -> None:
    installed.start()
    if has_sandbox():
        assert "Isolation of pods: sandbox" in installed.output.read_text()
    walk = tmp_path / "walk"
    walk.mkdir()
    for step, printed in documents.run(QUICKSTART, installed, walk):
        assert documents.is_expected(step, printed), f"{step.block.text}{printed}"
    # The pages that the edge serves are files of the package.
    url = f"{installed.ready['rest_url']}/openapi.yaml"
    assert "openapi: 3.1" in httpx.get(url, timeout=30).text
    assert installed.stop() == 0
