"""Compares cancellations that share statements with one statement for each call.

Run `python -m tests.bench.group_commit`. It starts a PostgreSQL of its own. Each round measures all
variants in turn: a number of callers that each make one call after the other, for workspaces that
nobody else uses. Prints the figures of one statement for each call and, for each variant, the
median over the rounds of its ratio to them. Every call must have recorded its intent.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import uvloop

from evershell.core.ports import RecordedCancellation
from evershell.local import postgres
from evershell.store.announce import announce_to_nobody
from evershell.store.cancellations import Cancellations
from evershell.store.migrate import migrate
from evershell.store.pool import Pool, open_pool
from tests.support.store.examples import ORG, USER, intent, permission

_WARM_UP_CALLS = 100
_CONNECTIONS = 10
_SEED = """
    TRUNCATE workspaces, tasks, events;
    INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id,
        created_at, updated_at, current_task_id, epoch, last_seq, agent_address)
    SELECT 'ws_' || n, '{org}', '', 'busy', '', '{user}', now(), now(), 'task_' || n, 1, 1, 'a'
    FROM generate_series(1, {count}) n;
    INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
        iterations, created_at, reason, result, forced, input_tokens, output_tokens, model_calls,
        tool_calls)
    SELECT 'task_' || n, 'ws_' || n, 'sleep 1', '{{}}', 100, 'running', 'tool_call', 1, now(), '',
        '', false, 0, 0, 0, 0
    FROM generate_series(1, {count}) n;
    INSERT INTO events
    SELECT 'ws_' || n, 1, 'task_submitted', now(), 'task_' || n, NULL, NULL, '{{}}'
    FROM generate_series(1, {count}) n;
    VACUUM ANALYZE workspaces, tasks, events;
    CHECKPOINT;
"""

Record = Callable[[str], Awaitable[RecordedCancellation]]
# Seconds for one call, by the name of the figure.
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--at-once", type=int, nargs="+", default=[4])
    parser.add_argument("--max-batch", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000)
    options = parser.parse_args()
    variants = list(itertools.product(options.at_once, options.max_batch))
    figures: dict[tuple[int, tuple[int, int] | None], list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder, database(Path(folder)) as url:
        for _ in range(options.rounds):
            for callers in options.callers:
                for variant in (None, *variants):
                    measured = uvloop.run(measure(url, variant, callers, options.calls))
                    figures.setdefault((callers, variant), []).append(measured)
    show(figures)


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """An empty database with the current schema, on a server with the settings of a stack."""
    places = postgres.places(folder)
    postgres.initialise(places.data_dir)
    with (folder / "postgres.log").open("wb") as log:
        command = postgres.command(places.data_dir, places.socket_dir)
        process = subprocess.Popen(command, stderr=log)
    try:
        url = postgres.database_url(places.socket_dir)
        asyncio.run(postgres.wait_ready(url, 20))
        migrate(url)
        yield url
    finally:
        process.send_signal(postgres.STOP_SIGNAL)
        process.wait(20)


async def measure(url: str, variant: tuple[int, int] | None, callers: int, calls: int) -> Figures:
    """`variant` is `at_once` and `max_batch`; None for one statement for each call."""
    count = _WARM_UP_CALLS + calls
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _SEED.format(org=ORG, user=USER, count=count).split(";"):
            connection.execute(statement.encode())
    async with open_pool(url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool:
        await pool.wait()
        record = recorder(pool, variant)
        await run(record, callers, range(1, _WARM_UP_CALLS + 1))
        worker, database_cpu, began = psutil.Process(), _database_cpu(), time.perf_counter()
        worker_cpu = sum(worker.cpu_times()[:2])
        seconds = await run(record, callers, range(_WARM_UP_CALLS + 1, count + 1))
        return {
            "wall": (time.perf_counter() - began) / calls,
            "p50": statistics.median(seconds),
            "p99": statistics.quantiles(seconds, n=100)[98],
            "worker CPU": (sum(worker.cpu_times()[:2]) - worker_cpu) / calls,
            "database CPU": (_database_cpu() - database_cpu) / calls,
        }


def recorder(pool: Pool, variant: tuple[int, int] | None) -> Record:
    # With a connection for each caller, no request waits for another.
    at_once, max_batch = variant or (1_000_000, 1)
    cancellations = Cancellations(pool, announce_to_nobody, max_batch=max_batch, at_once=at_once)

    async def record(workspace_id: str) -> RecordedCancellation:
        return await cancellations.record(permission(), workspace_id, None, intent(), "")

    return record


async def run(record: Record, callers: int, numbers: range) -> list[float]:
    """Makes one call for each number. Returns the seconds of each."""
    left, seconds = iter(numbers), list[float]()

    async def call() -> None:
        for number in left:
            began = time.perf_counter()
            found = await record(f"ws_{number}")
            seconds.append(time.perf_counter() - began)
            assert found.recorded

    await asyncio.gather(*(call() for _ in range(callers)))
    return seconds


def _database_cpu() -> float:
    """The CPU time of all processes of the server, in seconds."""
    return sum(
        sum(process.cpu_times()[:2])
        for process in psutil.Process(os.getpid()).children(recursive=True)
    )


def show(figures: dict[tuple[int, tuple[int, int] | None], list[Figures]]) -> None:
    names = list(next(iter(figures.values()))[0])
    print("callers variant        ", *(f"{name:>14}" for name in names))
    for (callers, variant), runs in figures.items():
        if variant is None:
            label = "alone, µs"
            shown = [f"{statistics.median(run[name] for run in runs) * 1e6:.0f}" for name in names]
        else:
            label = f"at once {variant[0]}, batch {variant[1]}"
            base = figures[callers, None]
            shown = [
                f"{statistics.median(ratios(name, runs, base)):.2f}"
                f" ({min(ratios(name, runs, base)):.2f}-{max(ratios(name, runs, base)):.2f})"
                for name in names
            ]
        print(f"{callers:7} {label:20}", *(f"{each:>16}" for each in shown))


def ratios(name: str, runs: list[Figures], base: list[Figures]) -> list[float]:
    return [run[name] / each[name] for run, each in zip(runs, base, strict=True)]


if __name__ == "__main__":
    main()
