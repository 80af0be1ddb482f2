"""`make chaos`: cancels tasks during random faults, and exits 1 if a promise was broken.

The calls are recorded and judged (evershell.histories). A failed run keeps the record as
history.jsonl.

On one machine, the faults freeze, kill and restart programs and fill disks. With a pair of
databases, faults also make the database fail over, set clocks wrong and restart the programs with
another version, and agents use TLS. On many hosts, which are network namespaces of this machine,
faults cut the connections between hosts.
"""

import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from tests.faults import network
from tests.faults.long.chaos import pair
from tests.faults.long.chaos.plan import Plan, draw
from tests.faults.long.chaos.run import Outcome, run
from tests.faults.long.hosts import partitions
from tests.stack.long import clocks

# The maximum number of violations to print: one defect may break a promise in every call. All
# violations are in the folder of the run.
_VIOLATIONS_SHOWN = 30
_ENDS = (signal.SIGTERM, signal.SIGHUP)


class Place(NamedTuple):
    """A place in which plans are played."""

    draw: Callable[[int, float, int, int], Plan]
    run: Callable[[Plan, Path], Outcome]
    # Returns why this machine cannot play the plans; empty if it can.
    refusal: Callable[[], str]


PLACES = {
    "machine": Place(draw, run, str),
    "pair": Place(pair.draw, pair.run, clocks.refusal),
    "hosts": Place(partitions.draw, partitions.run, network.refusal),
}


@click.command()
@click.option(
    "--seconds", default=60.0, show_default=True, help="The duration of the faults in each place."
)
@click.option(
    "--seed", type=int, help="The seed of an earlier run, to repeat its faults and calls."
)
@click.option("--workspaces", default=20, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the state even if every promise was kept.")
@click.option("--load", default=0, help="How many processes use up the processors throughout.")
@click.option("--place", type=click.Choice(list(PLACES)), help="Run only in this place.")
def main(
    seconds: float, seed: int | None, workspaces: int, *, keep: bool, load: int, place: str | None
) -> None:
    """Causes random faults on a new stack in each place.

    Keeps the state if a promise was broken.
    """
    for number in _ENDS:
        signal.signal(number, _end)
    seed = random.randrange(10**6) if seed is None else seed
    kept = True
    for name, each in PLACES.items():
        if place not in (None, name):
            continue
        if reason := each.refusal():
            click.echo(f"\n{name}: not played, because {reason}")
            continue
        click.echo(f"\n{name}")
        kept &= _play(each.draw(seed, seconds, workspaces, load), each.run, keep=keep)
    sys.exit(not kept)


def _end(*_: object) -> None:
    """Exits, so that everything is cleaned up as after an error. Ignores further signals."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


def _play(plan: Plan, play: Callable[[Plan, Path], Outcome], *, keep: bool) -> bool:
    """Plays the plan and reports. Returns whether every promise was kept."""
    click.echo(
        f"seed {plan.seed}: {plan.seconds:g} s, {plan.workspaces} workspaces, "
        f"{len(plan.faults)} faults{f', a load of {plan.load}' if plan.load else ''}\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        outcome = play(plan, folder / "state")
    except BaseException:
        click.echo(f"the run could not be judged; the logs: {folder}")
        raise
    click.echo("\n".join(report(outcome)) + "\n")
    if outcome.violations:
        (folder / "faults").write_text("\n".join(_hits(outcome)))
        (folder / "violations").write_text("\n".join(outcome.violations))
        click.echo(f"{len(outcome.violations)} VIOLATIONS, seed {plan.seed}; the logs: {folder}")
        click.echo("\n".join(outcome.violations[:_VIOLATIONS_SHOWN]))
        return False
    click.echo("everything holds" + (f"; the logs: {folder}" if keep else ""))
    if not keep:
        shutil.rmtree(folder)
    return True


def report(outcome: Outcome) -> Iterator[str]:
    """Yields a table of the faults, a table of the answers, and the verdict."""
    hits = Counter((f"{hit.fault.kind} {hit.fault.target}", hit.missed) for hit in outcome.hits)
    yield f"{'fault':36}    hit  missed"
    for name in sorted({name for name, _ in hits}):
        yield f"{name:36} {hits[name, False]:6} {hits[name, True]:7}"
    yield f"\n{'answer':36}  calls"
    for (rpc, answer), count in sorted(outcome.load.answers.items()):
        yield f"{f'{rpc}: {answer}':36} {count:6}"
    yield f"\n{outcome.judged}"
    yield f"agents without enough time on this machine with these faults: {len(outcome.too_short)}"
    yield from outcome.too_short


def _hits(outcome: Outcome) -> Iterator[str]:
    """Yields one line for each fault, in chronological order."""
    for hit in sorted(outcome.hits, key=lambda hit: hit.began):
        began = datetime.fromtimestamp(hit.began, UTC).isoformat(timespec="milliseconds")
        how = "missed" if hit.missed else f"{hit.ended - hit.began:.3f} s"
        yield f"{began} {hit.fault.kind} {hit.fault.target} {hit.workspace_id} {how}"


if __name__ == "__main__":
    main()
