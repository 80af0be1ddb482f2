"""A run that leaves something behind fails and reports it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT

LEAVES_A_FILE_AND_A_PROCESS = """
import subprocess
import tempfile

def test_it() -> None:
    tempfile.mkstemp(prefix="forgotten-")
    subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
"""


def run(tmp_path: Path, test: str, *options: str) -> "subprocess.CompletedProcess[str]":
    path = tmp_path / "test_it.py"
    path.write_text(test)
    plugin = ["-p", "tests.support.leftovers", "--rootdir", str(tmp_path), "-c", os.devnull]
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *plugin, *options),
            *("-o", "tmp_path_retention_policy=failed", path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_file_and_a_process_that_are_left_fail_the_run(tmp_path: Path) -> None:
    # They do not go, however long the run waits for them.
    done = run(tmp_path, LEAVES_A_FILE_AND_A_PROCESS, "-o", "settle_seconds=1")
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert re.search(r"^/\S*/forgotten-", done.stdout, re.MULTILINE)
    (pid,) = re.findall(r"^process (\d+) sleep$", done.stdout, re.MULTILINE)
    os.kill(int(pid), signal.SIGKILL)
