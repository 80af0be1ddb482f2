"""Starts and stops the whole stack on this machine, for `make run`.

The stack is PostgreSQL, the control plane's workers, two fleet controllers with local pods, and
Envoy. One of the controllers leads, and the other one stands by.
"""

import asyncio
import subprocess
from functools import partial
from pathlib import Path
from typing import Literal

from ulid import ULID

from evershell.app.settings import Settings
from evershell.app.signals import END_WAITS, stop_signal
from evershell.auth.signing_keys import new_key, read_signing_keys
from evershell.cli.terminal import printable
from evershell.core.errors import OperatorError, UnavailableError
from evershell.core.ports import Clock, Store
from evershell.fleet.local import isolation
from evershell.fleet.local.local_pods import end_every_pod
from evershell.stack import postgres, ready, run_lock
from evershell.stack.database import prepare_database, seed
from evershell.stack.environments import (
    edge_environment,
    edge_metrics_port,
    fleet_environment,
    foreign_environment,
    render_environment,
    service_settings,
    worker_environment,
)
from evershell.stack.envoy.config import edge_of
from evershell.stack.envoy.edge_process import EdgeProcess
from evershell.stack.first_task import (
    DemoFailedError,
    await_another_start,
    await_first_task,
    saved_at,
)
from evershell.stack.port_check import check_ports
from evershell.stack.ready import (
    Demo,
    Ready,
    another_start,
    first_calls,
    write_environment,
    write_private,
)
from evershell.stack.rolling_restart import RollingRestart
from evershell.stack.supervisor import Program, Supervisor
from evershell.store.keys import PostgresKeys
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import ServiceClock
from evershell.telemetry.logs import Sink

# The size at which the log of a program is rotated.
LOG_MAX_BYTES = 16 * 1024 * 1024
# How many log files of each program are kept, including the current one.
_LOG_FILES = 5
# How long the calls that are in flight may take when the stack stops.
_DRAIN_SECONDS = 1.5
# The time limit of a stop. Programs that still run after it are killed, even if their own limits
# have not passed.
_STOP_SECONDS = 8.0


async def up(settings: Settings, agent_file: Path | None = None) -> None:
    """Starts the stack, prints how to use it, and stops it at SIGINT or SIGTERM.

    `agent_file` is the file of the user's agent. If the agent does not start, the stack waits for
    another version of the file.

    Raises OperatorError if it cannot be started, and psycopg.Error.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with run_lock.exclusive(settings.state_dir):
        # A run that was killed may have left its files.
        ready.clear(settings.state_dir)
        _ensure_signing_key(settings.signing_key_path)
        check_ports(settings)
        stopping = asyncio.create_task(stop_signal())
        supervisor = Supervisor(
            settings.logs_dir,
            settings.program_memory_mb * 2**20,
            log_max_bytes=LOG_MAX_BYTES,
            log_files=_LOG_FILES,
        )
        wanted = edge_of(
            settings,
            service_settings(settings).worker_addresses,
            admin_socket=postgres.places(settings.state_dir).socket_dir / "envoy.sock",
            metrics_port=edge_metrics_port(settings),
        )
        edge = EdgeProcess(wanted, settings.state_dir / "envoy.yaml")
        rolling = RollingRestart(supervisor, edge, partial(_render, settings, edge))
        run_lock.write_pid(settings.state_dir)
        starting = asyncio.create_task(_start(settings, supervisor, edge, agent_file))
        restarting = asyncio.create_task(rolling.run_on_request(starting))
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                _announce(*starting.result())
                while not stopping.done():
                    supervisor.reap()
                    await asyncio.wait((stopping,), timeout=1.0)
            _print("Stopping.")
        finally:
            for task in (starting, restarting):
                task.cancel()
            await asyncio.gather(starting, restarting, return_exceptions=True)
            ready.clear(settings.state_dir)
            await _stop(settings, supervisor, edge)


def _ensure_signing_key(path: Path) -> None:
    """Creates the file if it does not exist. Raises OperatorError if the file is not valid."""
    if not path.exists():
        write_private(path, new_key())
    read_signing_keys(path)


async def _start(
    settings: Settings, supervisor: Supervisor, edge: EdgeProcess, agent_file: Path | None
) -> tuple[Settings, Demo]:
    """Starts the stack and waits until it serves.

    Returns the settings, completed with what was chosen at the start, and the demo organization.
    """
    await asyncio.to_thread(edge.configure)
    pod_isolation = await asyncio.to_thread(_choose_isolation, settings)
    if settings.database_url:
        _print("Connecting to the database that DATABASE_URL names …")
    else:
        _print("Starting PostgreSQL …")
    settings = settings.model_copy(
        update={
            "run_id": str(ULID()),
            "database_url": await _database(settings, supervisor),
            # Replaces `auto` by the choice, so that a restarted controller gets the same isolation.
            "pod_isolation": pod_isolation,
        }
    )
    await asyncio.to_thread(prepare_database, settings)
    try:
        async with open_pool(settings.session_url, max_size=2) as pool:
            clock = ServiceClock(pool)
            await clock.follow()
            store = PostgresStore(pool, clock=clock)
            demo = await seed(settings, store, PostgresKeys(pool), clock, clock.utc_seconds)
            _print("Starting control plane, fleet, edge …")
            await _start_programs(settings, supervisor, edge)
            _print("Starting the demo workspace's agent …")
            await _first_task(settings, demo, store, clock, agent_file)
            # The standby starts last, because nothing waits for it. The first controller leads by
            # now.
            await _start_controller(settings, supervisor, 1)
    except UnavailableError as error:
        raise OperatorError(f"The database cannot be used: {error}.") from error
    return settings, demo


async def _first_task(
    settings: Settings, demo: Demo, store: Store, clock: Clock, agent_file: Path | None
) -> None:
    """Waits until the demo workspace is ready. Raises OperatorError.

    If its agent fails and is a file, waits until the file is saved, or until a caller resumes the
    workspace, as often as needed.
    """
    while True:
        seen = saved_at(agent_file) if agent_file else 0
        try:
            await await_first_task(settings, demo, store)
            return
        except DemoFailedError as error:
            if agent_file is None:
                raise
            write_environment(_ready(settings, demo), settings.state_dir)
            _print(printable(str(error), block=True))
            _print(printable(another_start(demo, settings.state_dir, agent_file), block=True))
            await await_another_start(demo, store, clock, agent_file, seen)
            _print("Starting the demo workspace's agent again …")


async def _start_programs(settings: Settings, supervisor: Supervisor, edge: EdgeProcess) -> None:
    """Starts all programs except the database and the standby. Raises OSError."""
    command = partial(run_lock.command, settings.state_dir)
    for index, address in enumerate(settings.worker_addresses):
        own = worker_environment(settings, index)
        await supervisor.start(
            Program(
                f"worker-{index}",
                partial(command, "serve", "--port", address.rpartition(":")[2]),
                own,
                stop_seconds=5.0,
                counts_turns=True,
            )
        )
    await _start_controller(settings, supervisor, 0)
    await supervisor.start(
        Program(
            "envoy",
            edge.first,
            edge_environment(edge.settings),
            stop_seconds=2.0,
            is_live=edge.is_live,
        )
    )


async def _start_controller(settings: Settings, supervisor: Supervisor, index: int) -> None:
    """Starts a fleet controller. Raises OSError."""
    await supervisor.start(
        Program(
            f"fleet-{index}",
            partial(run_lock.command, settings.state_dir, "fleet"),
            fleet_environment(settings, index),
            stop_seconds=2.0,
            counts_turns=True,
        )
    )


def _render(settings: Settings, edge: EdgeProcess, path: Path) -> None:
    """Writes Envoy's configuration with the installation that the last restart has chosen.

    Its version may differ from the version of this process. Raises OperatorError.
    """
    options = ("--admin-socket", str(edge.settings.admin_socket), "--render", str(path))
    done = subprocess.run(
        run_lock.command(settings.state_dir, "edge", *options, *edge.settings.workers),
        env=render_environment(settings),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OperatorError(f"Envoy cannot be configured: {done.stderr.strip()}")


def _choose_isolation(settings: Settings) -> Literal["auto", "sandbox", "none"]:
    """Chooses the isolation of local pods. Prints its name and what it lacks.

    Raises OperatorError if a sandbox is wanted but does not work. With POD_ISOLATION=auto, a stack
    that only this machine can call gets no isolation and a warning instead.
    """
    if settings.on_kubernetes:
        return settings.pod_isolation
    chosen: isolation.Isolation
    try:
        chosen = isolation.choose(settings.pod_isolation, settings.state_dir)
    except OperatorError as error:
        if settings.pod_isolation != "auto" or not settings.listen_host.startswith("127."):
            raise
        chosen = isolation.NoIsolation()
        _print(f"WARNING: {error}")
    _print(f"Isolation of pods: {chosen.name}. It lacks {chosen.lacks}.")
    return chosen.name


async def _database(settings: Settings, supervisor: Supervisor) -> str:
    """The database's URL. Starts the embedded PostgreSQL if DATABASE_URL is not set."""
    if settings.database_url:
        return settings.database_url
    places = postgres.places(settings.state_dir)
    await asyncio.to_thread(postgres.initialise, places.data_dir)
    url = postgres.database_url(places.socket_dir)

    def command() -> list[str]:
        # If a server was killed, its frozen child processes do not end by themselves.
        postgres.clear_stale(places.data_dir)
        return postgres.command(places.data_dir, places.socket_dir)

    await supervisor.start(
        Program(
            "postgres",
            command,
            foreign_environment(),
            stop_signal=postgres.STOP_SIGNAL,
            stop_seconds=4.0,
            is_live=partial(asyncio.to_thread, postgres.is_live, url),
        )
    )
    try:
        await postgres.wait_ready(url, timeout_seconds=20.0)
    except TimeoutError as error:
        raise OperatorError(
            f"PostgreSQL does not start; see {settings.logs_dir}/postgres.log."
        ) from error
    return url


async def _stop(settings: Settings, supervisor: Supervisor, edge: EdgeProcess) -> None:
    """Stops the stack: first the programs that start others, and the database last, so that commits
    in flight can complete.
    """
    late = asyncio.get_running_loop().call_later(_STOP_SECONDS, supervisor.kill_all)
    draining = edge.drain(lambda: supervisor.send_signal(END_WAITS, "worker-"), _DRAIN_SECONDS)
    await asyncio.gather(draining, supervisor.stop(*supervisor.names("fleet-")))
    await supervisor.stop("envoy")
    edge.clear()
    ending_pods = end_every_pod(settings.state_dir, supervisor.own_pids)
    await asyncio.gather(ending_pods, supervisor.stop(*supervisor.names("worker-")))
    await supervisor.stop_all()
    late.cancel()
    supervisor.reap()


def _announce(settings: Settings, demo: Demo) -> None:
    """Writes ready.json and demo.env, and prints the first calls to make."""
    written = _ready(settings, demo)
    write_environment(written, settings.state_dir)
    written.write(settings.state_dir)
    _print(printable(first_calls(written, settings.state_dir), block=True))


def _ready(settings: Settings, demo: Demo) -> Ready:
    return Ready(
        rest_url=settings.rest_url,
        grpc_addr=f"{settings.edge_host}:{settings.grpc_port}",
        server_addr=service_settings(settings).worker_addresses[0],
        database_url=settings.session_url,
        tls_cert_file=str(settings.tls_cert_file.absolute()) if settings.tls_cert_file else None,
        demo=demo,
    )


def _print(text: str) -> None:
    """Prints a line to standard output. Does not fail, even if the disk is full."""
    _output.msg(text)


_output = Sink(1, lambda count: f"({count} lines could not be written.)")
