"""Checks that the service keeps its goodput under overload.

    python -m tests.faults.long.overload [--agents N] [--seconds N] [--checkout DIRECTORY]

The goodput is the number of tasks per second that were cancelled in time and ended `cancelled`.

Raises the rate of cancellations until one call in a hundred takes a second or fails. The last rate
before that is the highest rate. Then the load runs at the highest rate, at three times that rate,
and at the highest rate again. Prints the figures of each phase. Exits 1 unless the goodput under
overload was at least 80 % of the goodput at the highest rate, no program was replaced, no workspace
has failed, and the service had recovered 10 s after the overload.
"""

import os
import sys
import tempfile
from pathlib import Path

import click

from tests.faults.long.overload.load import Phase
from tests.faults.long.overload.run import Run
from tests.support.stack import ROOT


@click.command()
@click.option("--agents", default=400, show_default=True, help="The number of busy agents.")
@click.option("--seconds", default=600.0, show_default=True, help="The duration of the overload.")
@click.option("--step", default=30.0, show_default=True, help="The duration of each other rate.")
@click.option("--first-rate", default=8.0, show_default=True, help="The first rate.")
@click.option("--rate", default=0.0, help="The highest rate; 0 to search for it.")
@click.option("--checkout", type=Path, default=ROOT, help="The checkout whose stack is measured.")
@click.option("--workers", default=2, show_default=True)
def main(
    agents: int,
    seconds: float,
    step: float,
    first_rate: float,
    rate: float,
    checkout: Path,
    workers: int,
) -> None:
    """Measures whether a new stack keeps its goodput under overload."""

    def show(name: str, phase: Phase) -> None:
        click.echo(f"{name:9} {phase}  load of the machine {os.getloadavg()[0]:.0f}")

    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        run = Run(Path(folder) / "state", checkout.resolve(), agents, workers, show)
        try:
            verdict = run.measure(first_rate, step, seconds, rate)
        finally:
            run.stop()
    click.echo(verdict)
    sys.exit(not verdict.holds)


if __name__ == "__main__":
    main()
