"""A short run of `make chaos`."""

from pathlib import Path

import pytest

from tests.faults.long.chaos import report
from tests.faults.long.chaos.drawing import draw
from tests.faults.long.chaos.plan import Kind, Target
from tests.faults.long.chaos.run import run
from tests.support import small_disk


# The stack starts and settles too, which takes longer on a busy machine.
@pytest.mark.timeout(240)
def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    outcome = run(
        draw(seed=2194, seconds=5, workspaces=4, logs_alone_seconds=0), tmp_path / "state"
    )
    table = "\n".join(report.lines(outcome))
    assert outcome.violations == [], table
    # The run made calls and inflicted faults.
    assert any(answer.outcome == "accepted" for answer in outcome.evidence.answers), table
    assert any(not hit.missed for hit in outcome.evidence.hits), table
    filled = {
        hit.fault.target
        for hit in outcome.evidence.hits
        if hit.fault.kind is Kind.FILL and not hit.missed
    }
    assert small_disk.refusal() or filled == {Target.PODS, Target.LOGS, Target.DATABASE}
