"""`make leaks`: makes many mixed calls, and exits 1 if a program has grown or an answer is wrong.

It prints the open files and the memory of every program before and after the calls, and judges the
history of the calls (evershell.histories).
"""

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from evershell.histories.judge import verdict
from evershell.histories.recorder import Recorder
from tests.faults.long.soak.calls import CALLERS, Mix, Tally
from tests.faults.long.soak.holdings import grown_files, grown_memory, settled, table
from tests.support.stack import Stack, Workspace

_WORKSPACES = 6
_PROBLEMS_SHOWN = 10
# Rate limiting is on, so that its counters can grow, but the limit is too high to be reached.
_LIMITS = {"RATE_LIMIT": "100000"}


@click.command()
@click.option(
    "--calls", default=20_000, show_default=True, help="Calls between the two measurements."
)
@click.option(
    "--warm-up", default=5_000, show_default=True, help="Calls before the first measurement."
)
@click.option("--seed", type=int, help="The seed of an earlier run, to repeat its mix of calls.")
def main(calls: int, warm_up: int, seed: int | None) -> None:
    """Makes many calls to a new stack and checks that memory and open files have hardly grown."""
    seed = random.randrange(10**6) if seed is None else seed
    click.echo(
        f"seed {seed}: {warm_up} calls to warm up, {calls} to measure, {CALLERS} callers, "
        f"{_WORKSPACES} workspaces"
    )
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    history = folder / "history.jsonl"
    stack = Stack(folder / "state", LOG_LEVEL="INFO", **_LIMITS)
    with stack.ended(), closing(Recorder(history)) as recorder:
        stack.start()
        problems = list(_soak(stack, calls, warm_up, seed, recorder))
        stack.stop()
    judged, contradictions = verdict(history)
    click.echo(f"{judged}{f', in {history}' if contradictions else ''}")
    problems += contradictions
    shutil.rmtree(folder / "state" if contradictions else folder)
    click.echo("\n".join(problems) or "nothing has grown")
    sys.exit(bool(problems))


def _soak(stack: Stack, calls: int, warm_up: int, seed: int, recorder: Recorder) -> Iterator[str]:
    """Makes the calls and prints the tables.

    Yields a line for each of the first wrong answers and for each program that has grown.
    """
    mix = Mix(stack, [Workspace(stack).id for _ in range(_WORKSPACES)], seed, recorder)
    asyncio.run(mix.run(warm_up))
    before, began, made = settled(stack), time.monotonic(), mix.tally.calls
    asyncio.run(mix.run(calls))
    took, made = time.monotonic() - began, mix.tally.calls - made
    after = settled(stack)
    for line in (
        *_answers(mix.tally),
        "",
        f"{made} calls in {took:.0f} s",
        *table(before, after),
    ):
        click.echo(line)
    yield from mix.tally.problems[:_PROBLEMS_SHOWN]
    yield from grown_files(before, after)
    yield from grown_memory(before, after)


def _answers(tally: Tally) -> Iterator[str]:
    """Yields one line for each RPC with its answers, including the answers during the warm-up."""
    for rpc in sorted({rpc for rpc, _ in tally.answers}):
        of_rpc = Counter(
            {answer: count for (each, answer), count in tally.answers.items() if each == rpc}
        )
        yield f"{rpc:16} " + ", ".join(
            f"{count} {answer}" for answer, count in of_rpc.most_common()
        )


if __name__ == "__main__":
    main()
