"""Runs code with the modules of the generator."""

import subprocess
import sys

from tests.support.stack import ROOT


def printed(code: str) -> str:
    """What the code prints, in a process of its own: the generator builds its own descriptors."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "protos",
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
