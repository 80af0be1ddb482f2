"""A test run that leaves something behind fails, and reports what it has left."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

LEAVES_A_FILE_AND_A_PROCESS = """
import subprocess
import tempfile

def test_it() -> None:
    tempfile.mkstemp(prefix="forgotten-")
    subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_file_and_a_process_that_are_left_fail_the_run(processes: str, tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(LEAVES_A_FILE_AND_A_PROCESS)
    # The run need not wait long, because these leftovers never go away.
    options = ("-o", "tmp_path_retention_policy=failed", "-o", "settle_seconds=1", "-n", processes)
    plugin = ("-p", "tests.support.leftovers", "--rootdir", str(tmp_path), "-c", os.devnull)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *options, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert re.search(r"^/\S*/forgotten-", done.stdout, re.MULTILINE)
    (pid,) = re.findall(r"^process (\d+) sleep$", done.stdout, re.MULTILINE)
    os.kill(int(pid), signal.SIGKILL)
