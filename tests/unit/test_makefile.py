"""What the Makefile refuses, and with which messages."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # If these tests run under make, its options must not reach the make under test.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A virtual environment and a stack's state folder, each with a lock file."""
    environment, state = tmp_path / "venv", tmp_path / "state"
    for folder in (environment, state):
        folder.mkdir()
        (folder / "lock").touch()
    return environment, state


def clean(folders: tuple[Path, Path], *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment, state = folders
    return make(
        "clean", f"VENV={environment}", f"STATE_DIR={state}", f"PYTHON={sys.executable}", *arguments
    )


def test_clean_keeps_the_state_unless_asked_to_remove_it(folders: tuple[Path, Path]) -> None:
    environment, state = folders
    kept = clean(folders)
    assert (kept.returncode, environment.exists(), state.exists()) == (0, False, True)
    assert "STATE=1" in kept.stdout
    assert clean(folders, "STATE=1").returncode == 0
    assert not state.exists()
    # Nothing is left to remove.
    assert clean(folders, "STATE=1").returncode == 0


def test_clean_keeps_a_folder_that_is_not_a_state(folders: tuple[Path, Path]) -> None:
    _, state = folders
    (state / "lock").unlink()
    assert clean(folders, "STATE=1").returncode == 0
    assert state.exists()


def test_clean_refuses_while_a_stack_runs(folders: tuple[Path, Path]) -> None:
    environment, state = folders
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = clean(folders, "STATE=1")
    assert refused.returncode != 0
    assert "Stop it first" in refused.stderr
    assert environment.exists()
    assert state.exists()


def test_the_pre_commit_hooks_run_the_commands_of_make_check() -> None:
    recipe = make("-n", "check").stdout.splitlines()
    commands = [line for line in recipe if line.startswith(".venv/bin/")]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
