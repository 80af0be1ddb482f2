"""A short run, so that `make chaos` works when it is needed."""

from pathlib import Path

from tests.chaos import report
from tests.chaos.plan import draw
from tests.chaos.run import run


def test_a_short_run(tmp_path: Path) -> None:
    outcome = run(draw(seed=3, seconds=8, workspaces=5, logs_alone_seconds=0), tmp_path / "state")
    table = "\n".join(report.lines(outcome))
    assert outcome.violations == [], table
    # It was a run: calls were answered, and things went wrong.
    assert any(answer.outcome == "accepted" for answer in outcome.evidence.answers), table
    assert any(not hit.missed for hit in outcome.evidence.hits), table
