"""Runs `evershell agent check`."""

import re
import subprocess
import sys
from pathlib import Path

TASKS = [
    *("--parallel", "parallel", "--model-error", "model error"),
    *("--tool-error", "tool error", "--loop-error", "loop error"),
]
# These limits are long enough for a busy machine.
PATIENT = ["--force-seconds", "60", "--task-seconds", "120"]
HOW = "cancelled", "forced"


def check(*arguments: str | Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Runs the command. Returns its exit code, and the verdict and the detail of each case."""
    done = subprocess.run(
        [sys.executable, "-m", "evershell.commands", "agent", "check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    *lines, _ = done.stdout.splitlines() or [done.stderr]
    rows = [re.split(r"\s{2,}", line, maxsplit=2) for line in lines]
    assert all(len(row) >= 2 for row in rows), done.stdout + done.stderr
    return done.returncode, {row[0]: (row[1], "".join(row[2:])) for row in rows}


def cases(rows: dict[str, tuple[str, str]], verdict: str) -> set[str]:
    return {case for case, (came, _) in rows.items() if came == verdict}
