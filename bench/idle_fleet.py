"""The cost of an idle workspace for the control plane, with 100 to 100,000 idle workspaces.

    python -m bench.idle_fleet [--checkout DIRECTORY] [--rounds N] [WORKSPACES …]

Runs a PostgreSQL, a worker and a fleet controller, and inserts the workspaces. Simulated agents,
each with its own connection and token, send Heartbeat calls to the worker. The script measures the
processor time of worker, controller and PostgreSQL in a window without heartbeats and in a window
with heartbeats:

    cost of a workspace = processor time per second without heartbeats / workspaces
                        + processor time of one heartbeat / heartbeat interval

At most _MAX_AGENTS simulated agents send heartbeats, because one machine cannot simulate more
agents at the rate of real ones. All other workspaces get leases that outlast the measurement. The
field `rate` contains the heartbeats per second.

Prints a JSON object for each row: name, unit, runs, median, min, max, target, holds, and others.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psycopg

from bench import processes
from bench.figures import Row, Summary, at_most
from bench.simulated_agents import INTERVAL_SECONDS, LEASE_SECONDS, Agents
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import new_key
from evershell.stack import postgres
from tests.support.stack import ROOT
from tests.support.waiting import eventually

WORKSPACES = (100, 1_000, 10_000, 100_000)
# The target for one workspace, in thousandths of a core.
TARGET = at_most(0.2)
_MAX_AGENTS = 2_000
_START_SECONDS = 20.0
# After this time, the programs have loaded everything, and the controller has become the leader.
_SETTLE_SECONDS = 6.0
_QUIET_SECONDS = 10.0
_WARM_SECONDS = INTERVAL_SECONDS + 1
# Longer than the controller's pause between two reads of the leases.
_BEATING_SECONDS = 20.0
_RUN_ID = "run_bench"
_CONTROLLER = Path(__file__).parent / "servers" / "controller.py"


@dataclass
class ControlPlane:
    """The programs whose processor time is measured."""

    url: str
    address: str
    tokens: PodTokens
    worker_pid: int
    controller_pid: int
    postgres_pid: int

    def cpu_seconds(self) -> dict[str, float]:
        """The processor time that each program has used so far."""
        backends = processes.descendants(self.postgres_pid, "postgres")
        return {
            "worker": processes.cpu_seconds([self.worker_pid]),
            "controller": processes.cpu_seconds([self.controller_pid]),
            "postgres": processes.cpu_seconds([self.postgres_pid, *backends]),
        }


@contextmanager
def database(folder: Path) -> Iterator[tuple[str, int]]:
    """Runs an empty PostgreSQL inside the block. Yields its URL and process id."""
    places = postgres.places(folder)
    postgres.initialise(places.data_dir)
    url = postgres.database_url(places.socket_dir)
    command = postgres.command(places.data_dir, places.socket_dir)
    with processes.started(command, folder / "postgres.log") as server:
        eventually(lambda: _answers(url), _START_SECONDS)
        yield url, server.pid


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def running(checkout: Path, folder: Path) -> Iterator[ControlPlane]:
    """Runs the programs of the checkout inside the block."""
    key, port = new_key(), processes.free_port()
    (folder / "control-plane.jwk").write_text(key)
    python, log = str(checkout / ".venv" / "bin" / "python"), folder / "log"
    with database(folder) as (url, postgres_pid):
        environment = {
            "STATE_DIR": str(folder),
            "DATABASE_URL": url,
            "SERVER_PORT": str(port),
            "WORKERS": "1",
            "RATE_LIMIT": "off",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "RUN_ID": _RUN_ID,
        }
        address = f"127.0.0.1:{processes.free_port()}"
        of_controller = {**environment, "METRICS_ADDRESS": address}
        migrate = f"from evershell.store.migrate import migrate; migrate({url!r})"
        subprocess.run([python, "-c", migrate], cwd=checkout, check=True)
        fleet = [python, str(_CONTROLLER)]
        serve = [python, "-m", "evershell.commands", "serve", "--port", str(port)]
        with (
            processes.started(serve, log, environment, checkout) as worker,
            processes.started(fleet, log, of_controller, checkout) as controller,
        ):
            processes.await_listening(worker, port, log)
            time.sleep(_SETTLE_SECONDS)
            pids = (worker.pid, controller.pid, postgres_pid)
            yield ControlPlane(url, f"127.0.0.1:{port}", PodTokens(key), *pids)


def insert(url: str, first: int, last: int) -> None:
    """Inserts idle workspaces with the numbers from `first` to `last`."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO workspaces (id, org_id, name, status, status_reason, created_by_user_id,
                created_at, updated_at, epoch, last_seq, agent_address, lease_expires_at, run_id)
            SELECT 'ws_' || lpad(n::text, 26, '0'), 'org_' || n %% 100, 'idle', 'idle', '',
                'user_' || n %% 1000, now(), now(), 1, 1, '127.0.0.1:9',
                now() + interval '1 hour', %s
            FROM generate_series(%s::int, %s::int) n
            """,
            (_RUN_ID, first, last),
        )
        connection.execute("VACUUM ANALYZE")


Used = dict[str, float]


def used(plane: ControlPlane, before: Used) -> Used:
    """The processor time that each program has used since the reading `before`."""
    return {name: now - before[name] for name, now in plane.cpu_seconds().items()}


def measure(plane: ControlPlane, workspaces: int) -> tuple[Used, float]:
    """Runs one round. Returns the cost of a workspace by program, and the heartbeats per second.

    The cost is in thousandths of a core. Fails unless every heartbeat was answered and every
    workspace still has its lease.
    """
    with psycopg.connect(plane.url, autocommit=True) as connection:
        connection.execute("UPDATE workspaces SET lease_expires_at = now() + interval '1 hour'")
        connection.execute("VACUUM workspaces")
    # Gives the controller time to read the new workspaces.
    time.sleep(2 + workspaces / 20_000)
    before, began = plane.cpu_seconds(), time.monotonic()
    time.sleep(_QUIET_SECONDS)
    quiet, quiet_seconds = used(plane, before), time.monotonic() - began
    agents = Agents.connect(plane.address, plane.tokens, min(workspaces, _MAX_AGENTS))
    try:
        with psycopg.connect(plane.url, autocommit=True) as connection:
            connection.execute(
                "UPDATE workspaces SET lease_expires_at = now() + %s * interval '1 s' "
                "WHERE id <= %s",
                (LEASE_SECONDS, f"ws_{len(agents.connections):026}"),
            )
        agents.beat(_WARM_SECONDS)
        before, began = plane.cpu_seconds(), time.monotonic()
        sent = agents.beat(_BEATING_SECONDS)
        beating, seconds = used(plane, before), time.monotonic() - began
    finally:
        agents.close()
    assert set(agents.statuses) == {0} and not agents.fenced, (agents.statuses, agents.fenced)
    with psycopg.connect(plane.url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM workspaces WHERE status = 'idle' AND lease_expires_at > now()"
        ).fetchone()
        assert row == (workspaces,), row
    quiet = {name: value / quiet_seconds for name, value in quiet.items()}
    a_beat = {name: (beating[name] - quiet[name] * seconds) / sent for name in quiet}
    cost = {
        name: 1000 * (quiet[name] / workspaces + a_beat[name] / INTERVAL_SECONDS) for name in quiet
    }
    return cost, sent / seconds


def summary(workspaces: int, rounds: Sequence[tuple[Used, float]]) -> dict[str, object]:
    """The row for this number of workspaces."""
    row = Row(
        name=f"control-plane CPU for an idle agent, {workspaces:,} workspaces",
        unit="core/1000",
        value=lambda _: 0.0,
        target=TARGET,
    )
    medians = {name: median(cost[name] for cost, _ in rounds) for name in rounds[0][0]}
    return {
        **Summary(row, [sum(cost.values()) for cost, _ in rounds]).as_json(),
        "rate": round(rounds[0][1]),
        **{name: round(value, 4) for name, value in medians.items()},
    }


def main() -> None:
    """Measures and prints one row for each number of workspaces."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("workspaces", type=int, nargs="*", default=WORKSPACES)
    options = parser.parse_args()
    inserted = 0
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        running(options.checkout.resolve(), Path(folder)) as plane,
    ):
        for workspaces in sorted(options.workspaces):
            insert(plane.url, inserted + 1, workspaces)
            inserted = workspaces
            rounds = [measure(plane, workspaces) for _ in range(options.rounds)]
            sys.stdout.write(json.dumps(summary(workspaces, rounds)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
