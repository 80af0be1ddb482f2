"""A PostgreSQL primary and its standby on this machine, with streaming replication."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from evershell.stack import postgres
from tests.support.waiting import eventually

START_SECONDS = 60.0
PROMOTE_SECONDS = 30.0


class Server:
    """A PostgreSQL server whose folder and address stay the same."""

    def __init__(self, state_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        """The variables in `environment` are added to this process's environment."""
        state_dir.mkdir()
        self._environment = os.environ | (environment or {})
        self.places = postgres.places(state_dir)
        self.url = postgres.database_url(self.places.socket_dir)
        self._log = state_dir.with_suffix(".log")
        self._process: psutil.Popen | None = None

    def start(self, **settings: str) -> None:
        """Starts the server. Returns once it answers."""
        command = postgres.command(self.places.data_dir, self.places.socket_dir)
        # Keeps shared memory in the server's folder, because a killed server would leave it behind
        # in /dev/shm. Lets the server restart itself after a crash of one of its processes, because
        # it has no supervisor.
        settings = {
            "dynamic_shared_memory_type": "mmap",
            "restart_after_crash": "on",
            **settings,
        }
        options = [each for pair in settings.items() for each in ("-c", "=".join(pair))]
        with self._log.open("ab") as log:
            self._process = psutil.Popen([*command, *options], env=self._environment, stderr=log)
        asyncio.run(postgres.wait_ready(self.url, START_SECONDS))

    def connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(self.url, autocommit=True)

    def value(self, query: str) -> Any:
        """Runs a query. Returns the first value of its first row."""
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes all processes of the server (SIGSTOP) inside the block."""
        with ExitStack() as frozen:
            for process in self.processes():
                process.suspend()
                frozen.callback(process.resume)
            yield

    def kill(self) -> None:
        """Kills all processes of the server at the same time, as if its machine had been lost."""
        family = self.processes()
        # Freezes all processes first, so that no process reacts to the end of another process.
        for process in family:
            process.suspend()
        for process in family:
            process.kill()
        psutil.wait_procs(family, START_SECONDS)

    def stop(self) -> None:
        if self._process is not None and self._process.is_running():
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_SECONDS)

    def processes(self) -> list[psutil.Process]:
        """Returns the server's processes, the main one first; empty if the server does not run."""
        if self._process is None or not self._process.is_running():
            return []
        return [self._process, *self._process.children(recursive=True)]


class Replication:
    """A standby, and a primary that commits only what the standby has received."""

    def __init__(
        self,
        folder: Path,
        standby_environment: Mapping[str, str] | None = None,
        primary_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.primary = Server(folder / "first", primary_environment)
        self.standby = Server(folder / "second", standby_environment)
        hosts = [each.places.socket_dir for each in (self.primary, self.standby)]
        # The URL for clients. It names both servers.
        self.url = (
            f"postgresql:///{postgres.DATABASE}?host={hosts[0]},{hosts[1]}&user={postgres.USER}"
        )

    def start(self) -> None:
        """Starts both servers. Returns once the replication is synchronous."""
        postgres.initialise(self.primary.places.data_dir)
        self.start_primary()
        self._start_standby()
        self._await_standby()

    def start_primary(self) -> None:
        """Starts the primary, or restarts it after it was killed."""
        self.primary.start(synchronous_standby_names="*", autovacuum="off")

    def promote(self) -> None:
        """Promotes the standby. Returns once it accepts writes."""
        assert self.standby.value(f"SELECT pg_promote(true, {PROMOTE_SECONDS:.0f})")

    def fail_over(self) -> None:
        """Kills the primary and promotes the standby.

        Until `rejoin`, the new primary has no standby.
        """
        self.primary.kill()
        self.promote()
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Starts a new standby in place of the server that was killed.

        Returns once the replication is synchronous.
        """
        shutil.rmtree(self.standby.places.data_dir, ignore_errors=True)
        self._start_standby()
        with self.primary.connect() as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        self._await_standby()

    def _start_standby(self) -> None:
        subprocess.run(
            [
                *postgres._argv("pg_basebackup"),
                *("--host", str(self.primary.places.socket_dir), "--username", postgres.USER),
                *("--pgdata", str(self.standby.places.data_dir), "--write-recovery-conf"),
                *("--checkpoint", "fast", "--no-sync"),
            ],
            check=True,
            cwd="/",
            timeout=START_SECONDS,
        )
        self.standby.start()

    def _await_standby(self) -> None:
        state = "SELECT coalesce(min(sync_state), '') FROM pg_stat_replication"
        eventually(lambda: self.primary.value(state) == "sync", START_SECONDS)

    def stop(self) -> None:
        for server in (self.standby, self.primary):
            server.stop()
