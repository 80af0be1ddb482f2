"""`make chaos`: cancels tasks during random faults, and exits 1 if a promise was broken.

On one machine, the faults freeze, kill and restart programs and fill disks. On many hosts, which
are network namespaces of this machine, they cut the hosts from each other.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.faults.long.chaos import report
from tests.faults.long.chaos.drawing import draw
from tests.faults.long.chaos.plan import Plan
from tests.faults.long.chaos.run import Outcome, run
from tests.faults.long.hosts import partitions
from tests.faults.long.hosts.run import run as run_on_hosts
from tests.support import network

# One defect may break a promise in every call. The file of a run has all violations.
_VIOLATIONS_SHOWN = 30


@click.command()
@click.option(
    "--seconds", default=60.0, show_default=True, help="How long faults occur, in each place."
)
@click.option(
    "--seed", type=int, help="The seed of an earlier run, to repeat its faults and calls."
)
@click.option("--workspaces", default=20, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the state even if every promise was kept.")
@click.option("--place", type=click.Choice(["machine", "hosts"]), help="Only there.")
def main(
    seconds: float, seed: int | None, workspaces: int, *, keep: bool, place: str | None
) -> None:
    """Plays plans on new stacks. Keeps the state if a promise was broken."""
    seed = random.randrange(10**6) if seed is None else seed
    kept = True
    if place != "hosts":
        _print("on one machine")
        kept = _play(draw(seed, seconds, workspaces), run, keep=keep)
    if place != "machine" and (reason := network.refusal()):
        _print("", f"not on many hosts: {reason}")
    elif place != "machine":
        _print("", "on many hosts")
        kept &= _play(partitions.draw(seed, seconds, workspaces), run_on_hosts, keep=keep)
    sys.exit(not kept)


def _play(plan: Plan, play: Callable[[Plan, Path], Outcome], *, keep: bool) -> bool:
    """Plays the plan and reports. Returns whether every promise was kept."""
    _print(report.plan_line(plan), "")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = play(plan, folder / "state")
    _print(*report.lines(outcome), "")
    (folder / "faults").write_text("\n".join(report.hit_lines(outcome)) + "\n")
    (folder / "violations").write_text("\n".join(outcome.violations) + "\n")
    if outcome.violations:
        _print(f"{len(outcome.violations)} VIOLATIONS, seed {plan.seed}; the logs are in {folder}")
        _print(*outcome.violations[:_VIOLATIONS_SHOWN])
        return False
    _print("everything holds" + (f"; the logs are in {folder}" if keep else ""))
    if not keep:
        shutil.rmtree(folder)
    return True


def _print(*lines: str) -> None:
    for line in lines:
        click.echo(line)


if __name__ == "__main__":
    main()
