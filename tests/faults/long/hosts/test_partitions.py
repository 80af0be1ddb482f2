"""A short run of `make chaos` on many hosts."""

from pathlib import Path

import pytest

from tests.faults import network
from tests.faults.long.hosts.partitions import draw, run


# The time limit includes the time for the stack to start and to settle, which is longer on a busy
# machine.
@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    network.require()
    outcome = run(draw(seed=18, seconds=20, workspaces=4), tmp_path / "state")
    assert outcome.violations == []
    # The run must have made calls and cut hosts off.
    assert outcome.load.answers["CancelTask", "accepted"] and outcome.hits
