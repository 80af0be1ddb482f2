"""How long it takes to cancel every running task of an organization, and to signal its agents.

    python -m tests.bench.batch_cancel [--tasks N] [--agents N] [--rounds N]

Runs a PostgreSQL, a worker and a fleet controller. Each running task has a workspace of its own,
and the simulated agents share them: one machine cannot run thousands of real agents. The script
calls CancelTasks until nothing remains, and waits until every task was signalled. A round fails
unless each task has its intent and exactly one event, and no task of another organization changed.

Prints one JSON object a row: name, unit, runs, median, min, max, target, holds.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from evershell.client import Client
from tests.bench import processes
from tests.bench.figures import Row, Summary, at_most
from tests.bench.idle_fleet import ControlPlane, running
from tests.bench.servers.many_agents import address
from tests.support.stack import ROOT
from tests.support.waiting import eventually

_ORG, _OTHER_ORG, _SECRET = "org_bench", "org_other", "sk_bench"
_OTHERS = 1_000
_LIMIT_SECONDS = 60.0
_ROWS = (
    ("CancelTasks until all intents of {:,} running tasks are recorded", at_most(5.0)),
    ("CancelTasks until the agents of {:,} running tasks are signalled", at_most(10.0)),
)
_INSERT_WORKSPACES = """
INSERT INTO workspaces (id, org_id, name, status, status_reason, created_at, updated_at,
    current_task_id, epoch, last_seq, agent_address, lease_expires_at, run_id)
SELECT 'ws_' || %(org)s || lpad(n::text, 8, '0'), %(org)s, '', 'busy', '', now(), now(),
    'task_' || %(org)s || lpad(n::text, 8, '0'), 1, 0,
    (%(addresses)s::text[])[n %% cardinality(%(addresses)s::text[]) + 1],
    now() + interval '1 hour', 'run_bench'
FROM generate_series(1, %(count)s::int) n
"""
_INSERT_TASKS = """
INSERT INTO tasks (id, workspace_id, description, metadata, max_iterations, status, phase,
    iterations, created_at, started_at, reason, result, forced, input_tokens, output_tokens,
    model_calls, tool_calls)
SELECT 'task_' || substr(id, 4), id, repeat('sleep 60 ', 20), '{"team": "a"}', 100, 'running',
    'tool_call', 3, now(), now(), '', '', false, 1, 1, 1, 1
FROM workspaces
"""
_CHECK = """
SELECT count(*) FILTER (WHERE w.org_id = %(org)s AND t.cancel_requested_at IS NOT NULL),
    count(*) FILTER (WHERE w.org_id <> %(org)s AND t.cancel_requested_at IS NOT NULL),
    (SELECT count(*) FROM events), (SELECT count(DISTINCT task_id) FROM events),
    count(*) FILTER (WHERE w.last_seq = 1)
FROM workspaces w JOIN tasks t ON t.workspace_id = w.id
"""


@contextmanager
def agents(folder: Path, count: int) -> Iterator[tuple[Path, list[str]]]:
    """Simulated agents: the file with their signals, and their addresses."""
    port, signals = processes.free_port(), folder / "signals"
    with signals.open("wb") as output, (folder / "agents.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.bench.servers.many_agents", str(port), str(count)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=log)
        try:
            eventually(lambda: signals.read_text().startswith(f"{count}\n"), 30)
            yield signals, [address(number, port) for number in range(count)]
        finally:
            processes.stop(process)


def insert(url: str, tasks: int, addresses: list[str]) -> None:
    """Replaces all tasks by running ones, of both organizations."""
    secret = hashlib.sha256(_SECRET.encode()).digest()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE events, tasks, workspaces, api_keys, orgs")
        connection.execute("INSERT INTO orgs (id, slug) VALUES (%s, 'bench')", (_ORG,))
        connection.execute(
            "INSERT INTO api_keys (id, org_id, name, template, sha256, created_at) "
            "VALUES ('key_bench', %s, '', 'full_access', %s, now())",
            (_ORG, secret),
        )
        for org, count in ((_ORG, tasks), (_OTHER_ORG, _OTHERS)):
            facts = {"org": org, "count": count, "addresses": addresses}
            connection.execute(_INSERT_WORKSPACES, facts)
        connection.execute(_INSERT_TASKS)
        connection.execute("VACUUM ANALYZE")


def measure(plane: ControlPlane, tasks: int, signals: Path) -> tuple[float, float]:
    """One round: the seconds until all intents are recorded, and until all are signalled."""
    signals_before = len(signals.read_text())
    cpu_before, began = plane.cpu_seconds(), time.time()
    with Client(f"http://{plane.address}", _SECRET, timeout=30) as client:
        results = list(client.cancel_all_tasks(all=True, reason="bench"))
    recorded = time.time() - began
    assert sum(result.accepted for result in results) == tasks, results[-1]

    def signalled() -> dict[str, float]:
        lines = signals.read_text()[signals_before:].splitlines()
        first: dict[str, float] = {}
        for line in lines:
            task_id, _, moment = line.partition(" ")
            if moment.count(".") == 1:
                first.setdefault(task_id, float(moment))
        return first

    eventually(lambda: len(signalled()) >= tasks, _LIMIT_SECONDS)
    last = max(signalled().values()) - began
    with psycopg.connect(plane.url) as connection:
        row = connection.execute(_CHECK, {"org": _ORG}).fetchone()
    assert row == (tasks, 0, tasks, tasks, tasks), row
    cpu = {name: round(now - cpu_before[name], 2) for name, now in plane.cpu_seconds().items()}
    sys.stderr.write(f"{recorded:.2f} s recorded, {last:.2f} s signalled, CPU seconds {cpu}\n")
    return recorded, last


def main() -> None:
    """Measures and prints the rows."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as temporary,
        agents(Path(temporary), options.agents) as (signals, addresses),
        running(ROOT, Path(temporary)) as plane,
    ):
        rounds = []
        for _ in range(options.rounds):
            insert(plane.url, options.tasks, addresses)
            # The controller ends the deliveries of the round before.
            time.sleep(3)
            rounds.append(measure(plane, options.tasks, signals))
    for number, (name, target) in enumerate(_ROWS):
        row = Row(name=name.format(options.tasks), unit="s", value=lambda _: 0.0, target=target)
        summary = Summary(row, [seconds[number] for seconds in rounds])
        sys.stdout.write(json.dumps(summary.as_json()) + "\n")


if __name__ == "__main__":
    main()
