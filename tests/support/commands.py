"""Fixtures that run commands as a user at a terminal, or a script, would run them."""

import subprocess
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from evershell.cli.main import main
from tests.support import programs
from tests.support.stack import Stack

# Runs a command. Takes its arguments, its standard input as `typed`, and environment variables.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(stack: Stack) -> Run:
    """Runs a command in a separate process."""

    def run(program: str, *arguments: str, **options: str) -> "subprocess.CompletedProcess[str]":
        return programs.run(program, stack.state_dir, *arguments, **options)

    return run


@pytest.fixture
def call(stack: Stack) -> Run:
    """Runs a command in this process, which saves the time to start an interpreter."""
    absent: dict[str, str | None] = dict.fromkeys(programs.OVERRIDES)

    def call(
        *arguments: str, typed: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        variables = {
            **absent,
            **programs.NO_PROFILES,
            "STATE_DIR": str(stack.state_dir),
            **environment,
        }
        done = CliRunner().invoke(main, arguments, input=typed, env=variables)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return call
