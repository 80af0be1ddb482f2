"""A short run of `make chaos`."""

from pathlib import Path

import pytest

from tests.faults.long.chaos.plan import Kind, Target, draw
from tests.faults.long.chaos.run import run
from tests.support import small_disk


# Includes the time for the stack to start and to settle, which is longer on a busy machine.
@pytest.mark.timeout(720)
def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    outcome = run(draw(seed=503657, seconds=60, workspaces=8), tmp_path / "state")
    assert outcome.violations == []
    # The run must have made calls and inflicted faults.
    assert outcome.load.answers["CancelTask", "accepted"]
    inflicted = {hit.fault.kind for hit in outcome.hits if not hit.missed}
    assert {Kind.FORCE, Kind.LOAD} <= inflicted
    filled = {hit.fault.target for hit in outcome.hits if hit.fault.kind is Kind.FILL}
    assert small_disk.refusal() or filled == {Target.PODS, Target.LOGS, Target.DATABASE}
