"""Runs code that uses the modules of the generator."""

import subprocess
import sys

from tests.support.stack import ROOT


def printed(code: str) -> str:
    """Runs the code and returns what it prints.

    The code runs in a separate process, because the generator builds its own descriptors.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "protos",
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
