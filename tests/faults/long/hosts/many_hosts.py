"""A stack on many hosts: each program runs in a network namespace of its own host.

The hosts share this machine's processes and files, so a controller can end the processes of agents
on any host. Only calls cross the network.
"""

import asyncio
import os
import secrets as random_secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import psycopg
from psycopg import sql

from evershell.app.settings import Settings
from evershell.auth.signing_keys import new_key
from evershell.stack import postgres
from evershell.stack.database import prepare_database, seed
from evershell.stack.ready import Demo, write_private
from evershell.store.keys import PostgresKeys
from evershell.store.leadership import LEADER_LOCK_KEY
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.faults.long.hosts import agent_on_host
from tests.faults.network import Network
from tests.support import pod_processes, secrets
from tests.support.stack import READY_SECONDS, STOP_SECONDS, Stack
from tests.support.waiting import eventually

EDGE, DATABASE = "edge", "database"
WORKERS = ("worker-0", "worker-1")
CONTROLLERS = ("controller-0", "controller-1")
AGENTS = ("agents-0", "agents-1")
HOSTS = (EDGE, DATABASE, *WORKERS, *CONTROLLERS, *AGENTS)
# The shortest lease that may be set, so that an agent that is cut off ends soon: 9.6 s after its
# last renewal. Calls that a cut delays have ended by then.
LEASE_SECONDS = 12.0
# With this prefix of its command line, the kernel kills a program when this process ends.
_ENDS_WITH_TEST = ("setpriv", "--pdeathsig", "KILL")
_POSTGRES_PORT = 5432
_POSTGRES_SECONDS = 20.0


class ManyHosts(Stack):
    """A stack whose network a test can cut. It has a second controller as a standby."""

    def __init__(self, state_dir: Path, network: Network, **environment: str) -> None:
        super().__init__(state_dir, **{"LEASE_SECONDS": str(LEASE_SECONDS), **environment})
        self.network = network
        self._programs: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int:
        """The id of this process, which is the parent of all programs."""
        return os.getpid()

    def pids(self, program: str) -> list[int]:
        """Returns the process ids of the programs of a kind, `serve` or `fleet`."""
        hosts = {"serve": WORKERS, "fleet": CONTROLLERS}[program]
        return [self._programs[host].pid for host in hosts]

    def processes(self) -> list[psutil.Process]:
        """Returns the programs and their descendants. This process has other children too."""
        programs = [psutil.Process(program.pid) for program in self._programs.values()]
        return [*programs, *(each for program in programs for each in program.children(True))]

    def worker_addresses(self) -> list[str]:
        return [self._at(host, "SERVER_PORT") for host in WORKERS]

    def host_of(self, workspace_id: str) -> str:
        """Returns the host on which the workspace's agent runs."""
        return AGENTS[agent_on_host.host_index(workspace_id, len(AGENTS))]

    def leader(self) -> str | None:
        """Returns the host of the controller that leads; None if no controller leads."""
        with self.database() as connection:
            row = connection.execute(
                "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid) "
                "WHERE locktype = 'advisory' AND objid = %s AND granted",
                (LEADER_LOCK_KEY,),
            ).fetchone()
        return next((host for host in CONTROLLERS if row == (self.network.address(host),)), None)

    def start(self) -> None:
        """Starts the stack and waits until it is ready."""
        (self.state_dir / "logs").mkdir(parents=True, mode=0o700)
        self.output.touch()
        socket_url = self._start_database()
        settings = Settings(state_dir=self.state_dir, database_url=socket_url)
        prepare_database(settings)
        write_private(settings.signing_key_path, new_key())
        demo = asyncio.run(_seed(settings))
        # The temporary folder of Envoy, which keeps files there as long as it runs.
        (self.state_dir / "edge").mkdir()
        for host in WORKERS:
            self._start(host, "serve", LISTEN_HOST=self.network.address(host))
        for host in CONTROLLERS:
            self._start(host, "fleet", AGENT_COMMAND=self._agent_command())
        self._start(
            EDGE,
            "edge",
            *self.worker_addresses(),
            LISTEN_HOST=self.network.address(EDGE),
            TMPDIR=str(self.state_dir / "edge"),
        )
        self.ready = {
            "rest_url": f"http://{self._at(EDGE, 'REST_PORT')}",
            "grpc_addr": self._at(EDGE, "GRPC_PORT"),
            "server_addr": self.worker_addresses()[0],
            "database_url": socket_url,
            "demo": demo.model_dump(),
        }
        eventually(lambda: self._is_ready(demo), READY_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops the stack. Returns the highest exit code of its programs."""
        self.close_callers()
        until = time.monotonic() + STOP_SECONDS
        self._end(EDGE, *CONTROLLERS, number=number, until=until)
        # There are no pods if no controller has ever started.
        for pod in (self.state_dir / "pods").glob("*"):
            pod_processes.kill(pod.name)
        self._end(*WORKERS, number=number, until=until)
        self._end(DATABASE, number=postgres.STOP_SIGNAL, until=until)
        # Leaves out Envoy, whose exit code only says that the signal ended it.
        codes = [each.returncode for host, each in self._programs.items() if host != EDGE]
        self._programs.clear()
        secrets.search(self.ready, self.state_dir)
        return max(map(abs, codes), default=0)

    def kill_if_running(self) -> None:
        """Stops the stack if it is still running."""
        if self._programs:
            self.network.heal()
            self.stop()

    def _at(self, host: str, port: str) -> str:
        return f"{self.network.address(host)}:{self._environment[port]}"

    def _agent_command(self) -> str:
        hosts = [f"{self.network.namespace(host)}={self.network.address(host)}" for host in AGENTS]
        return shlex.join([sys.executable, "-P", agent_on_host.__file__, *hosts])

    def _start_database(self) -> str:
        """Starts the database on its host. Returns its URL for programs of this machine."""
        places = postgres.places(self.state_dir)
        postgres.initialise(places.data_dir)
        network = f"{self.network.address(DATABASE)}/24"
        with (places.data_dir / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {network} scram-sha-256\n")
        self._run(
            DATABASE,
            *postgres.command(places.data_dir, places.socket_dir),
            "-c",
            f"listen_addresses={self.network.address(DATABASE)}",
        )
        socket_url, password = postgres.database_url(places.socket_dir), random_secrets.token_hex()
        asyncio.run(postgres.wait_ready(socket_url, _POSTGRES_SECONDS))
        with psycopg.connect(socket_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER USER {} PASSWORD {}").format(
                    sql.Identifier(postgres.USER), sql.Literal(password)
                )
            )
        host = f"{self.network.address(DATABASE)}:{_POSTGRES_PORT}"
        self._environment |= {
            "DATABASE_URL": (f"postgresql://{postgres.USER}:{password}@{host}/{postgres.DATABASE}"),
            "RUNTIME_SERVICE": ",".join(self.worker_addresses()),
            # An agent cannot both enter the namespace of another host and run in a sandbox.
            "POD_ISOLATION": "none",
        }
        return socket_url

    def _start(self, host: str, *command: str, **environment: str) -> None:
        self._run(host, sys.executable, "-m", "evershell.commands", *command, **environment)

    def _run(self, host: str, *command: str, **environment: str) -> None:
        with (self.state_dir / "logs" / f"{host}.log").open("ab") as log:
            self._programs[host] = subprocess.Popen(
                [*_ENDS_WITH_TEST, *self.network.command(host, *command)],
                env=self._environment | environment,
                stdout=log,
                stderr=log,
            )

    def _is_ready(self, demo: Demo) -> bool:
        for host, program in self._programs.items():
            assert program.poll() is None, (self.state_dir / "logs" / f"{host}.log").read_text()
        path = f"/v1/workspaces/{demo.workspace_id}"
        try:
            return bool(self.rest().call("GET", path).json().get("status") == "idle")
        except httpx.TransportError:
            # Envoy is not listening yet.
            return False

    def _end(self, *hosts: str, number: signal.Signals, until: float) -> None:
        running = [self._programs[host] for host in hosts if host in self._programs]
        for program in running:
            program.send_signal(number)
        for program in running:
            try:
                program.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


async def _seed(settings: Settings) -> Demo:
    async with open_pool(settings.database_url, max_size=2) as pool:
        return await seed(
            settings, PostgresStore(pool, machine_clock), PostgresKeys(pool), machine_clock
        )
