"""A side of the comparison: a stack of this or another checkout, with the bench's data."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg

from bench import arming, processes
from bench.http2 import Connection
from tests.support.stack import ROOT, Stack

SERVICE = "/evershell.workspace.v1.WorkspaceService"
# The key of the lock in server/evershell/store/leadership.py. The holder of the lock leads.
_LEADER_LOCK = 0x6576_6C64


class Side:
    """A running stack with one worker, without rate limits."""

    def __init__(self, name: str, checkout: Path = ROOT, state_dir: Path | None = None) -> None:
        """Without `state_dir`, the state folder is temporary."""
        self.name = name
        self.checkout = checkout
        self._temporary = None if state_dir else tempfile.TemporaryDirectory(prefix="bench-")
        parent = state_dir or Path(self._temporary.name if self._temporary else "") / "state"
        self.stack = Stack(parent, WORKERS="1")
        self.stack.checkout = checkout
        self._leadership: psycopg.Connection[Any] | None = None

    def start(self) -> None:
        """Starts the stack and waits until it is ready."""
        self.stack.start()

    def stop(self) -> None:
        """Stops the stack and removes its temporary files."""
        for connection in (self.__dict__.pop("database", None), self._leadership):
            if connection is not None:
                connection.close()
        self.stack.kill_if_running()
        if self._temporary is not None:
            self._temporary.cleanup()

    @cached_property
    def database(self) -> psycopg.Connection[Any]:
        """A connection to the side's database, for the bench's own statements."""
        return self.stack.database()

    @property
    def address(self) -> str:
        """host:port of the worker."""
        return str(self.stack.ready["server_addr"])

    @cached_property
    def worker_pids(self) -> list[int]:
        """The process id of the worker, as a list of one."""
        return self.stack.pids("serve")

    def postgres_pids(self) -> list[int]:
        """The process ids of PostgreSQL at this moment."""
        return processes.descendants(self.stack.pid, "postgres")

    def connect(
        self, method: str, token: str = "full_access", address: str | None = None
    ) -> Connection:
        """A connection to a worker, for calls of `method`.

        `token` is the name of a demo credential, or a token.
        """
        bearer = self.stack.tokens.get(token, token)
        return Connection(
            address or self.address,
            f"{SERVICE}/{method}",
            [("authorization", f"Bearer {bearer}")],
        )

    def take_leadership(self) -> None:
        """Makes the fleet controller a standby, which does not act on the bench's workspaces.

        Ends the database session that holds the leader's lock, again and again, until the bench
        itself gets the lock.
        """
        if self._leadership is not None:
            return
        self._leadership = psycopg.connect(self.stack.ready["database_url"], autocommit=True)
        while not self._leads(self._leadership):
            self.database.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_locks
                WHERE locktype = 'advisory' AND granted AND pid <> %s
                    AND (classid::bigint << 32 | objid::bigint) = %s
                """,
                (self._leadership.info.backend_pid, _LEADER_LOCK),
            )
            time.sleep(0.01)

    @staticmethod
    def _leads(connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_LEADER_LOCK,)).fetchone()
        return row is not None and bool(row[0])

    @contextmanager
    def second_worker(self, log: Path) -> Iterator[tuple[str, int]]:
        """Runs another worker inside the block. Yields its address and process id."""
        port = processes.free_port()
        environment = {
            "STATE_DIR": str(self.stack.state_dir),
            "DATABASE_URL": self.stack.ready["database_url"],
            "RATE_LIMIT": "off",
        }
        command = [self.stack.python, "-m", self.stack.module, "serve", "--port", str(port)]
        with processes.started(command, log, environment, self.checkout) as process:
            processes.await_listening(process, port, log)
            yield f"127.0.0.1:{port}", process.pid

    def arm(self, count: int, *agent_addresses: str) -> arming.Armed:
        """Creates workspaces with running tasks, spread over the agents."""
        return arming.arm(self.database, count, agent_addresses)

    @cached_property
    def tasks(self) -> arming.RunningTasks:
        """The running tasks of the bench's agents."""
        return arming.RunningTasks(self.database)
