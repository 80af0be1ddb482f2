"""What an idle agent costs the control plane. `bench/idle_fleet.py` measures it."""

import json
import subprocess
import sys

from bench.figures import Figures, Row, at_most, figure
from bench.plan import Block, Setting, Window
from bench.side import Side
from tests.support.stack import ROOT

_WORKSPACES = 1_000


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="idle fleet",
            windows=[Window("idle fleet", _measure)],
            rows=[
                Row(
                    name=f"control-plane CPU for an idle agent, {_WORKSPACES:,} workspaces",
                    unit="core/1000",
                    value=figure("median", "idle fleet"),
                    target=at_most(0.2),
                )
            ],
            rounds=1,
            quick_rounds=0,
        )
    ]


def _measure(setting: Setting, side: Side) -> Figures:
    """Runs `bench/idle_fleet.py` for the side's checkout, with its own programs and database."""
    command = [sys.executable, "-m", "bench.idle_fleet", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--checkout", str(side.checkout), str(_WORKSPACES)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {"median": float(json.loads(done.stdout.splitlines()[-1])["median"])}
