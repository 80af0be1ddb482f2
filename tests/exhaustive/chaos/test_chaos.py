"""A short run, so that `make chaos` works when it is needed."""

from pathlib import Path

from tests.exhaustive.chaos import report
from tests.exhaustive.chaos.plan import Kind, Target, draw
from tests.exhaustive.chaos.run import run
from tests.support import small_disk


def test_a_short_run(tmp_path: Path) -> None:
    outcome = run(
        draw(seed=2194, seconds=5, workspaces=4, logs_alone_seconds=0), tmp_path / "state"
    )
    table = "\n".join(report.lines(outcome))
    assert outcome.violations == [], table
    # It was a run: calls were answered, and things went wrong.
    assert any(answer.outcome == "accepted" for answer in outcome.evidence.answers), table
    assert any(not hit.missed for hit in outcome.evidence.hits), table
    filled = {
        hit.fault.target
        for hit in outcome.evidence.hits
        if hit.fault.kind is Kind.FILL and not hit.missed
    }
    assert small_disk.refusal() or filled == {Target.PODS, Target.LOGS, Target.DATABASE}
