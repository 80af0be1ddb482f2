"""The machine of tests/faults/invariants finds each mutation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.long.mutations.mutations import MACHINE
from tests.faults.long.mutations.play_machine import FOUND
from tests.support.stack import ROOT

LIMIT_SECONDS = 300
# In seconds. More than the program may take.
pytestmark = pytest.mark.timeout(LIMIT_SECONDS + 20)


@pytest.mark.parametrize("name", MACHINE)
def test_the_machine_finds_a_mutation(name: str, tmp_path: Path) -> None:
    mutation = MACHINE[name]
    path = os.pathsep.join((str(mutation.checkout(tmp_path)), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.faults.long.mutations.play_machine"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    found = "\n".join(done.stdout.splitlines()[-2:])
    assert (done.returncode, mutation.found in found) == (FOUND, True), (found, done.stderr)
