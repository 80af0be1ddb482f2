"""Runs one program of the stack until it exits."""

import os
import subprocess
import sys
from pathlib import Path


def run(
    program: str, state_dir: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    given = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, "-m", "evershell.commands", program, *arguments],
        env={**given, "STATE_DIR": str(state_dir), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
