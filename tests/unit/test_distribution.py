"""What the wheel contains."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.distribution import PARTS, build, packaged
from tests.support.stack import ROOT


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    wheel, _ = build(tmp_path_factory.mktemp("dist"))
    return packaged(wheel)


def test_the_wheel_has_the_files_of_the_packages_and_no_others(files: dict[str, bytes]) -> None:
    expected = {
        str(path.relative_to((ROOT / part).parent)): path.read_bytes()
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == expected
    assert {name.split("/")[0] for name in files} == {"evershell"}
    assert "evershell/store/functions/record_cancellation.sql" in files
    assert "evershell/edge/envoy.yaml" in files


def test_the_top_level_is_small() -> None:
    """The repository has only these folders, and the hidden folders of tools."""
    listed = subprocess.run(
        ["git", "ls-files"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    folders = {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line}
    assert {folder for folder in folders if not folder.startswith(".")} == {
        "bench",
        "client",
        "clients",
        "deploy",
        "docs",
        "envoy",
        "examples",
        "gen",
        "protos",
        "server",
        "tests",
    }


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("grpcio", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
        ("protobuf", r"Domain\.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+),"),
    ],
)
def test_the_dependencies_are_new_enough_for_the_generated_modules(name: str, pattern: str) -> None:
    """An older version of the package would refuse to import the modules."""
    needed = {
        ".".join(found.groups())
        for path in Path(ROOT, "gen").rglob("*_pb2*.py")
        for found in re.finditer(pattern, path.read_text())
    }
    (requirement,) = (
        each
        for each in map(Requirement, metadata.requires("evershell") or [])
        if each.name == name and each.marker is None
    )
    assert [f">={version}" for version in needed] == [str(requirement.specifier)]
