"""`make bench`: measures the service, prints the results and writes them to a JSON file.

The docstring of the package explains the options and how to read the results.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import arming, environment, processes, report, targets
from bench.environment import Options
from bench.figures import Figures, Row, Summary, summarise
from bench.plan import Block, Setting
from bench.rows import all_blocks
from bench.servers.agent import AGENTS, addresses
from bench.side import Side
from tests.support.stack import ROOT

BENCH_JSON = "bench.json"
_PARTIAL_JSON = "bench.partial.json"
_FLOOR_ROWS = 5_000
# No window begins after this time. The last window may still run, so a full run takes at most 10
# minutes, and a quick run at most 60 s.
_SECONDS = 560.0
_QUICK_SECONDS = 46.0

Results = dict[str, dict[str, list[dict[str, Figures]]]]


def main() -> int:
    """Runs the bench. Returns the exit code."""
    processes.exit_on_sigterm()
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        options = Options.read(os.environ)
    except ValueError as error:
        console.print(str(error))
        return 2
    until = time.monotonic() + _limit_seconds(options)
    blocks = _selected(all_blocks(options.quick), options)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        setting = stack.enter_context(_running(options, Path(folder)))
        described = {
            **environment.describe(setting.home.database),
            "quick": options.quick,
        }
        results = _measure(setting, blocks, options, until, skipped, console)
    summaries = {
        side: [
            summary
            for block in blocks
            for summary in summarise(block.rows, rounds.get(block.name, []))
        ]
        for side, rounds in results.items()
    }
    return _report(summaries, described, skipped, options, console)


def _selected(blocks: Sequence[Block], options: Options) -> list[Block]:
    """The selected blocks, each with its selected rows and the windows that those rows need.

    Blocks that need the fleet controller come first.
    """
    chosen = []
    for block in blocks:
        if options.quick and not block.quick_rounds:
            continue
        rows = _rows(block, options)
        needed = set().union(*(row.windows for row in rows))
        windows = [window for window in block.windows if window.name in needed]
        if rows:
            chosen.append(replace(block, rows=rows, windows=windows))
    return sorted(chosen, key=lambda block: not block.needs_controller)


def _rows(block: Block, options: Options) -> list[Row]:
    if options.rows in block.name.lower():
        return list(block.rows)
    return [row for row in block.rows if options.rows in row.name.lower()]


@contextmanager
def _running(options: Options, folder: Path) -> Iterator[Setting]:
    """Runs all sides, the bench's agent and the floor until the context exits."""
    sides = [Side("after")]
    if options.compare is not None:
        sides.insert(0, Side("before", options.compare))
    with ExitStack() as stack:
        for side in sides:
            stack.callback(side.stop)
            side.start()
        home = sides[-1]
        floor_database = stack.enter_context(home.stack.database())
        row_ids = arming.prepare_floor(floor_database, _FLOOR_ROWS)
        agent_port, floor_port = processes.free_port(), processes.free_port()
        agents = addresses(agent_port, AGENTS)
        log = folder / "agents.log"
        stack.enter_context(
            processes.running("bench.servers.agent", agent_port, str(AGENTS), log=log)
        )
        floor = stack.enter_context(
            processes.running(
                "bench.servers.floor",
                floor_port,
                agents[0],
                home.stack.ready["database_url"],
                log=folder / "floor.log",
            )
        )
        yield Setting(
            sides=sides,
            floor_address=f"127.0.0.1:{floor_port}",
            floor_pid=floor.pid,
            floor_tasks=arming.RunningTasks(floor_database),
            agent_addresses=agents,
            row_ids=row_ids,
            quick=options.quick,
            folder=folder,
            resources=stack,
        )


def _measure(
    setting: Setting,
    blocks: Sequence[Block],
    options: Options,
    until: float,
    skipped: dict[str, str],
    console: Console,
) -> Results:
    """Runs one round of each block in turn, until all rounds have run or the time is up."""
    results: Results = {side.name: {} for side in setting.sides}
    for needs_controller in (True, False):
        waiting = [block for block in blocks if block.needs_controller is needs_controller]
        for block in list(waiting):
            if reason := block.skipped_because(setting):
                skipped[block.name] = reason
                waiting.remove(block)
        if not needs_controller:
            for side in setting.sides:
                side.take_leadership()
        number = 0
        while waiting and time.monotonic() < until:
            for block in waiting:
                if time.monotonic() < until:
                    console.print(f"round {number + 1}: {block.name}", style="dim")
                    _run_round(setting, block, results, until)
            number += 1
            waiting = [block for block in waiting if number < _rounds(block, options)]
        for block in waiting:
            if number == 0:
                skipped[block.name] = "there was no time left"
    return results


def _limit_seconds(options: Options) -> float:
    if options.rounds:
        return math.inf
    return _QUICK_SECONDS if options.quick else _SECONDS


def _rounds(block: Block, options: Options) -> int:
    return options.rounds or (block.quick_rounds if options.quick else block.rounds)


def _run_round(setting: Setting, block: Block, results: Results, until: float) -> None:
    """Runs the windows of one round: shared windows once, all others once for each side.

    Leaves out windows that have not begun when the time is up.
    """
    measured: dict[str, dict[str, Figures]] = {side.name: {} for side in setting.sides}
    for window in block.windows:
        if time.monotonic() >= until:
            break
        if window.is_shared:
            figures = window.measure(setting, setting.home)
            for side in setting.sides:
                measured[side.name][window.name] = figures
        else:
            for side in setting.sides:
                measured[side.name][window.name] = window.measure(setting, side)
    for side in setting.sides:
        results[side.name].setdefault(block.name, []).append(measured[side.name])


def _report(
    summaries: dict[str, list[Summary]],
    described: dict[str, object],
    skipped: dict[str, str],
    options: Options,
    console: Console,
) -> int:
    own = summaries["after"]
    report.print_table(own, skipped, console)
    if options.compare is not None:
        names = (environment.commit(options.compare), environment.commit(ROOT))
        report.print_comparison(summaries["before"], own, names, console)
    name = _PARTIAL_JSON if options.is_partial else BENCH_JSON
    (ROOT / name).write_text(report.document(own, described, skipped))
    unlisted = sorted(report.missed(own) - targets.listed_as_missed())
    if unlisted:
        page = targets.DOCUMENT.relative_to(ROOT)
        console.print(f"missed, and not explained in {page}: {'; '.join(unlisted)}")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
