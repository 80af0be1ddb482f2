"""`make gen` replaces gen/ as a whole, or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of protos/, whose gen/ has only an outdated file."""
    copy = tmp_path / "protos"
    shutil.copytree(ROOT / "protos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    outdated = tmp_path / "gen" / "evershell" / "outdated_pb2.py"
    outdated.parent.mkdir(parents=True)
    outdated.touch()
    return copy


def generate(protos: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(protos / "generate.py")], capture_output=True, text=True, check=False
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_proto_that_is_not_valid_changes_nothing(protos: Path) -> None:
    (protos / "evershell/workspace/v1/broken.proto").write_text('syntax = "proto3";\nmessage {\n')
    done = generate(protos)
    assert done.returncode == 1
    assert "broken.proto:2:9" in done.stderr
    assert done.stderr.endswith("A proto is not valid. Nothing was changed.\n")
    assert files(protos.parent / "gen") == {"evershell/outdated_pb2.py"}
    assert {path.name for path in protos.parent.iterdir()} == {"protos", "gen"}


def test_valid_protos_replace_what_was_there(protos: Path) -> None:
    done = generate(protos)
    assert done.returncode == 0, done.stderr
    generated = files(protos.parent / "gen")
    assert "evershell/outdated_pb2.py" not in generated
    assert generated == {name for name in files(ROOT / "gen") if "__pycache__" not in name}
    assert files(protos.parent / "docs") == {"errors.md"}
