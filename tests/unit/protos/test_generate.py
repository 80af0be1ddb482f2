"""`make gen` replaces gen/ as a whole, or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

BUNDLE = "gen/evershell/edge/console"


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of protos/, whose gen/ has only an outdated file and the bundle of the console."""
    copy = tmp_path / "protos"
    shutil.copytree(ROOT / "protos", copy, ignore=shutil.ignore_patterns("__pycache__"))
    outdated = tmp_path / "gen" / "evershell" / "outdated_pb2.py"
    outdated.parent.mkdir(parents=True)
    outdated.touch()
    for folder in ("envoy/console", BUNDLE):
        shutil.copytree(ROOT / folder, tmp_path / folder)
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
    bundle = {f"evershell/edge/console/{name}" for name in files(ROOT / BUNDLE)}
    assert files(protos.parent / "gen") == {"evershell/outdated_pb2.py"} | bundle
    assert {path.name for path in protos.parent.iterdir()} == {"envoy", "protos", "gen"}


def test_valid_protos_replace_what_was_there(protos: Path) -> None:
    done = generate(protos)
    assert done.returncode == 0, done.stderr
    generated = files(protos.parent / "gen")
    assert "evershell/outdated_pb2.py" not in generated
    assert generated == {name for name in files(ROOT / "gen") if "__pycache__" not in name}
    assert files(protos.parent / "docs") == {"errors.md"}
    assert {path.name for path in protos.parent.iterdir()} == {"docs", "envoy", "gen", "protos"}


@pytest.mark.parametrize("changed", ["envoy/console/src/main.tsx", f"{BUNDLE}/console.js"])
def test_the_console_is_bundled_again_after_a_change(protos: Path, changed: str) -> None:
    root = protos.parent
    question = "import console; print(console.is_current(console.ROOT / console.COMMITTED))"

    def is_current() -> str:
        command = [sys.executable, "-c", question]
        return subprocess.run(
            command, cwd=protos, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert is_current() == "True"
    with (root / changed).open("a") as file:
        file.write("\n")
    assert is_current() == "False"
