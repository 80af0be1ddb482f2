"""Measures how much one organization, the filler, slows down another one, the neighbour.

The filler uses up what both organizations share.

    python -m tests.faults.long.neighbours [--row NAME] [--keys N] [--phases N] [--pairs N]
    python -m tests.faults.long.neighbours --mixed SECONDS

For each row of fillers.py, alternates phases without and with the filler. Prints the p99 of
CancelTask and GetTask. Exits 1 if a p99 with the filler is more than twice the p99 without it and
also more than 50 ms above it, or if a call of the neighbour has failed.

With `--mixed`, one organization runs one to three of the fillers at once, and others every 20 s.
Meanwhile, 16 callers of another organization cancel and read a task. Exits 1 if a call of these 16
callers has failed, or if a filler was never refused.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click

from tests.faults.long.neighbours.fillers import FILLERS, filled, new_keys
from tests.faults.long.neighbours.neighbour import Seen, cancel_and_read
from tests.support.stack import Stack, Workspace

_MORE_SECONDS = 0.05
_CALLERS, _MIX_SECONDS, _MIXED_KEYS = 16, 20.0, 50
_PAIRS_AT_ONCE = 20


@click.command()
@click.option("--row", "rows", multiple=True, type=click.Choice(list(FILLERS)))
@click.option("--keys", multiple=True, type=int, default=(1, 50), show_default=True)
@click.option(
    "--phases", default=10, show_default=True, help="Phases with the filler, and as many without."
)
@click.option("--pairs", default=100, show_default=True, help="Calls of each method in a phase.")
@click.option("--mixed", default=0.0, help="Run several fillers at once, for these seconds.")
def main(
    rows: tuple[str, ...], keys: tuple[int, ...], phases: int, pairs: int, mixed: float
) -> None:
    """Starts a stack. Prints a line for each row and number of keys, or one line with `--mixed`."""
    with tempfile.TemporaryDirectory(prefix="neighbours-") as folder:
        stack = Stack(Path(folder) / "state", WORKERS="2", RATE_LIMIT="off")
        with stack.started():
            mine = [Workspace(stack).id for _ in range(_MIXED_KEYS if mixed else max(keys))]
            if mixed:
                sys.exit(asyncio.run(_mixed(stack, mine, mixed)))
            felt = [
                asyncio.run(_row(stack, name, mine[:count], phases, pairs))
                for name in rows or FILLERS
                for count in keys
            ]
    sys.exit(any(felt))


async def _row(stack: Stack, name: str, mine: Sequence[str], phases: int, pairs: int) -> bool:
    """Measures one row of fillers.py.

    Returns whether the neighbour became too slow or one of its calls failed.
    """
    other, count = Workspace(stack, "other_org"), len(mine)
    task_id = other.begin("sleep 3600")
    keys = new_keys(stack, mine[0], count)
    control, beside, refused = Seen(), Seen(), 0
    for _ in range(phases):
        control.add(await cancel_and_read(stack, other, task_id, pairs))
        async with filled(stack, name, keys, mine, 2) as ends:
            beside.add(await cancel_and_read(stack, other, task_id, pairs))
        refused += ends["rate_limited"]
    pairs_of_p99 = list(zip(control.p99(), beside.p99(), strict=True))
    felt = any(after > max(2 * before, before + _MORE_SECONDS) for before, after in pairs_of_p99)
    texts = [f"{1000 * before:.1f} → {1000 * after:.1f} ms" for before, after in pairs_of_p99]
    print(
        f"{name}, {count} keys: p99 of CancelTask {texts[0]}, of GetTask {texts[1]}; "
        f"failures {control.failures + beside.failures}; filler refused {refused:,} times; "
        f"{'FELT' if felt or beside.failures else 'not felt'}",
        flush=True,
    )
    return felt or bool(control.failures or beside.failures)


async def _mixed(stack: Stack, mine: Sequence[str], seconds: float) -> bool:
    """Runs several fillers at once, and meanwhile makes the neighbour's calls.

    Returns whether a call of the neighbour failed, or a filler was never refused.
    """
    other = Workspace(stack, "other_org")
    task_id = other.begin("sleep 3600")
    keys = new_keys(stack, mine[0], len(mine))
    chance, seen, refused = random.Random(0), Seen(), Counter[str]()
    ends = time.monotonic() + seconds

    async def call() -> None:
        while time.monotonic() < ends:
            seen.add(await cancel_and_read(stack, other, task_id, _PAIRS_AT_ONCE, _CALLERS))

    callers = asyncio.gather(*(call() for _ in range(_CALLERS)))
    while time.monotonic() < ends:
        names = chance.sample(list(FILLERS), chance.randint(1, 3))
        async with AsyncExitStack() as fillers:
            counts = [
                await fillers.enter_async_context(filled(stack, name, keys, mine, 2))
                for name in names
            ]
            await asyncio.sleep(min(_MIX_SECONDS, max(0.0, ends - time.monotonic())))
        refused.update(
            {name: each["rate_limited"] for name, each in zip(names, counts, strict=True)}
        )
    await callers
    p99 = " and ".join(f"{1000 * each:.1f} ms" for each in seen.p99())
    print(
        f"mixed, {seconds:.0f} s: {len(seen.cancels):,} CancelTask and as many GetTask, p99 {p99}; "
        f"failures {Counter(seen.failures)}; fillers refused {dict(refused)}",
        flush=True,
    )
    return bool(seen.failures) or not all(refused.values())


if __name__ == "__main__":
    main()
