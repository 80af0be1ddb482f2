"""`make chaos`: cancels tasks during random faults, and exits 1 if a promise was broken.

The faults freeze, kill and restart programs and fill disks.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path

import click

from tests.exhaustive.chaos import report
from tests.exhaustive.chaos.plan import draw
from tests.exhaustive.chaos.run import run


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long faults occur.")
@click.option(
    "--seed", type=int, help="The seed of an earlier run, to repeat its faults and calls."
)
@click.option("--workspaces", default=20, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the state even if every promise was kept.")
def main(seconds: float, seed: int | None, workspaces: int, *, keep: bool) -> None:
    """Plays a plan on a new stack. Keeps the state if a promise was broken."""
    plan = draw(random.randrange(10**6) if seed is None else seed, seconds, workspaces)
    _print(*report.plan_lines(plan), "")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = run(plan, folder / "state")
    _print(*report.lines(outcome), "")
    (folder / "faults").write_text("\n".join(report.hit_lines(outcome)) + "\n")
    if outcome.violations:
        _print(f"{len(outcome.violations)} VIOLATIONS, seed {plan.seed}; the logs are in {folder}")
        _print(*report.violation_lines(outcome.violations))
        sys.exit(1)
    _print("everything holds" + (f"; the logs are in {folder}" if keep else ""))
    if not keep:
        shutil.rmtree(folder)


def _print(*lines: str) -> None:
    for line in lines:
        click.echo(line)


if __name__ == "__main__":
    main()
