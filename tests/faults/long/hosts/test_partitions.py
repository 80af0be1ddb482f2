"""A short run of `make chaos` on many hosts, and its plans."""

from itertools import product
from pathlib import Path

import pytest

from tests.faults.long.chaos import report
from tests.faults.long.chaos.causes import RECOVERED_SECONDS
from tests.faults.long.chaos.plan import Kind
from tests.faults.long.hosts.partitions import GROUPS, draw, ways
from tests.faults.long.hosts.run import run
from tests.support import network


# The stack starts and settles too, which takes longer on a busy machine.
@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    network.require()
    outcome = run(draw(seed=18, seconds=20, workspaces=4), tmp_path / "state")
    table = "\n".join([*report.lines(outcome), *report.hit_lines(outcome)])
    assert outcome.violations == [], table
    # The run made calls and cut hosts off.
    assert any(answer.outcome == "accepted" for answer in outcome.evidence.answers), table
    assert outcome.evidence.hits, table


def test_every_pair_is_cut_in_every_way_and_all_recovers_in_between() -> None:
    plans = [draw(seed, 60, 2) for seed in range(30)]
    kinds = {(fault.target, fault.kind) for plan in plans for fault in plan.faults}
    assert kinds == set(product(GROUPS, (Kind.CUT, Kind.CUT_THERE, Kind.CUT_BACK)))
    for plan in plans:
        assert draw(plan.seed, 60, 2) == plan
        ends = -RECOVERED_SECONDS
        for fault in plan.faults:
            # A second cut begins and ends within the first.
            assert fault.at_seconds < ends or fault.at_seconds >= ends + RECOVERED_SECONDS
            ends = max(ends, fault.at_seconds + fault.seconds - 0.01)
            assert ends < 60
            assert len(set(ways(fault))) == len(ways(fault)) > 0
