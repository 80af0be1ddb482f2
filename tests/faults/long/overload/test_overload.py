"""A short overload with few agents."""

from pathlib import Path

import pytest

from tests.faults.long.overload.run import Run
from tests.support import sandbox
from tests.support.stack import ROOT

_AGENTS, _FIRST_RATE, _STEP_SECONDS, _OVERLOAD_SECONDS = 60, 2.0, 15.0, 45.0


@pytest.mark.soak
def test_overload_harms_no_agent(tmp_path: Path) -> None:
    """Under overload, no workspace fails and no program is replaced.

    `python -m tests.faults.long.overload` also measures the goodput, which needs a quiet machine.
    """
    sandbox.skip_without_sandbox()
    run = Run(tmp_path / "state", ROOT, _AGENTS, 2, lambda name, phase: print(name, phase))
    try:
        verdict = run.measure(_FIRST_RATE, _STEP_SECONDS, _OVERLOAD_SECONDS)
    finally:
        run.stop()
    assert verdict.overload.cancelled and not verdict.failed and not verdict.replaced, verdict
