"""Runs one program of the stack until it exits."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT

# These variables take precedence over STATE_DIR, so `command` removes them.
OVERRIDES = ("EVERSHELL_URL", "EVERSHELL_API_KEY", "EVERSHELL_PROFILE", "DATABASE_URL")
# Names a file that does not exist, so that programs ignore the profiles of the user who runs the
# tests.
NO_PROFILES = {"EVERSHELL_CONFIG": "/nowhere/profiles.json"}


def command(
    program: str, state_dir: Path, *arguments: str, **environment: str
) -> tuple[list[str], dict[str, str]]:
    """Returns the command line of a program and its environment.

    The program finds the stack only by STATE_DIR.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    return (
        [sys.executable, "-m", "evershell.commands", program, *arguments],
        {**kept, **NO_PROFILES, "STATE_DIR": str(state_dir), **environment},
    )


def run(
    program: str, state_dir: Path, *arguments: str, typed: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the program."""
    line, variables = command(program, state_dir, *arguments, **environment)
    return subprocess.run(
        line,
        cwd=ROOT,
        env=variables,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
