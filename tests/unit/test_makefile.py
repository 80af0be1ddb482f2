"""The Makefile: what it refuses, and with which messages."""

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # If make runs these tests, its options must not reach the make under test.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A virtual environment and the state of a stack, each with a lock file."""
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
    # There is nothing left to remove.
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


def python(folder: Path, preamble: str) -> Path:
    """A Python that runs `preamble` before the check and fails at the next command."""
    program = folder / "python"
    run = "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    code = shlex.quote(f"import runpy, sys\n{preamble}\n{run}")
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = .make/check_python.py ] || { echo checks passed >&2; exit 1; }\n'
        f'exec {shlex.quote(sys.executable)} -c {code} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("preamble", "expected"),
    [
        ("sys.version_info = (3, 9, 18)", "is Python 3.9.18; 3.11 or newer is needed"),
        ("sys.modules['venv'] = None", "has no venv module; install it"),
        # Like Debian's Python without the package python3-venv.
        ("sys.modules['ensurepip'] = None", "has no venv module; install it"),
    ],
)
def test_an_unsuitable_python_is_refused_in_one_sentence(
    tmp_path: Path, preamble: str, expected: str
) -> None:
    ready = tmp_path / "venv" / ".ready"
    refused = make(f"VENV={ready.parent}", f"PYTHON={python(tmp_path, preamble)}", str(ready))
    assert refused.returncode != 0
    first, *rest = refused.stderr.strip().splitlines()
    assert expected in first
    assert all(line.startswith("make") for line in rest)
    assert "setting up" not in refused.stdout


def test_a_missing_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    ready = tmp_path / "venv" / ".ready"
    refused = make(f"VENV={ready.parent}", "PYTHON=python-that-is-not-there", str(ready))
    assert refused.stderr.startswith(
        "python-that-is-not-there was not found. Install Python 3.11 or newer."
    )


def test_a_suitable_python_passes_the_check(tmp_path: Path) -> None:
    ready = tmp_path / "venv" / ".ready"
    passed = make(f"VENV={ready.parent}", f"PYTHON={python(tmp_path, '')}", str(ready))
    assert passed.stderr.startswith("checks passed")


def test_run_installs_only_the_service_unless_the_tools_are_installed(tmp_path: Path) -> None:
    ready = tmp_path / "venv" / ".ready"
    first = make("-n", f"VENV={ready.parent}", "run").stdout
    assert "--require-hashes requirements.txt" in first
    assert "--require-hashes requirements-dev.txt" not in first
    tests = make("-n", f"VENV={ready.parent}", "test").stdout
    assert "--require-hashes requirements-dev.txt" in tests
    ready.parent.mkdir()
    ready.touch()
    assert "--require-hashes" not in make("-n", f"VENV={ready.parent}", "run").stdout


def test_the_pre_commit_hooks_run_the_commands_of_make_check() -> None:
    recipe = make("-n", "check").stdout.splitlines()
    commands = [line for line in recipe if line.startswith(".venv/bin/")]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
