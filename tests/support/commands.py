"""Fixtures that run the commands, as a user at a terminal or a script does."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from evershell.cli.main import main
from tests.support.stack import ROOT, Stack

# Takes the arguments, `typed` for the standard input, and variables of the environment.
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# These variables take precedence over STATE_DIR, so the tests remove them.
OVERRIDES = ("EVERSHELL_URL", "EVERSHELL_API_KEY", "EVERSHELL_PROFILE", "DATABASE_URL")
# The tests ignore the profiles of the user who runs them.
NO_PROFILES = {"EVERSHELL_CONFIG": "/nowhere/profiles.json"}


@pytest.fixture
def run(stack: Stack) -> Run:
    """Runs a command in a process of its own. It finds the stack by STATE_DIR alone."""
    kept = {name: value for name, value in os.environ.items() if name not in OVERRIDES}

    def run(
        *arguments: str, typed: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "evershell.commands", *arguments],
            cwd=ROOT,
            env={**kept, **NO_PROFILES, "STATE_DIR": str(stack.state_dir), **environment},
            input=typed,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pytest.fixture
def call(stack: Stack) -> Run:
    """Runs a command in this process, which saves the start of an interpreter."""
    absent: dict[str, str | None] = dict.fromkeys(OVERRIDES)

    def call(
        *arguments: str, typed: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        variables = {
            **absent,
            **NO_PROFILES,
            "STATE_DIR": str(stack.state_dir),
            **environment,
        }
        done = CliRunner().invoke(main, arguments, input=typed, env=variables)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return call
