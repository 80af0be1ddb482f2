"""What the peers have in common: a server in its own process, and a database."""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from bench import http1, processes
from bench.peers.agent import Agent
from evershell.app.settings import Settings

# The default number of connections of a worker of this service.
_POOL_SIZE: int = Settings.model_fields["pool_size"].default


class WrongOutcomeError(Exception):
    """An answered cancellation is not recorded exactly once, or the agent got no signal for it."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST request to a peer's API, which cancels one running task."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    # The id of the task to cancel.
    task_id: str

    def encoded(self, address: str) -> bytes:
        """The bytes of the request to a server at this address."""
        return http1.request(address, self.path, self.headers, self.body)


class Peer(ABC):
    """A server that cancels tasks."""

    name: ClassVar[str]
    # The module of the server, which takes its port as an argument.
    _module: ClassVar[str]

    def __init__(self) -> None:
        self._key = f"sk_{secrets.token_urlsafe(32)}"
        # The host and port of the server; empty until it has been started.
        self.address = ""
        # The id of the server's process.
        self.pids: Sequence[int] = ()

    @contextmanager
    def running(self, server_url: str, agent: Agent, folder: Path) -> Iterator[None]:
        """Runs the server inside the block, with an empty database on this PostgreSQL server.

        The server writes its log to `folder`.
        """
        self._agent = agent
        port = processes.free_port()
        with _database(server_url, f"peer_{self.name}") as self._database_url:
            environment = {
                "DATABASE_URL": self._database_url,
                "POOL_SIZE": str(_POOL_SIZE),
                "AGENT_URL": agent.url,
                "AGENT_GRPC_ADDRESS": agent.grpc_address,
                "API_KEY_SHA256": hashlib.sha256(self._key.encode()).hexdigest(),
            }
            log = folder / f"{self.name}.log"
            with processes.running(self._module, port, log=log, environment=environment) as server:
                self.address, self.pids = f"127.0.0.1:{port}", [server.pid]
                self._prepare()
                yield

    @abstractmethod
    def arm(self, count: int) -> Sequence[HttpRequest]:
        """Starts `count` tasks. Returns for each task the request that cancels it."""

    def check(self, requests: Sequence[HttpRequest]) -> None:
        """Checks that each cancellation is recorded exactly once and was signalled to the agent.

        Every request must have been answered. Raises WrongOutcomeError if a record or a signal is
        missing, or if a cancellation is recorded twice.
        """
        task_ids = [request.task_id for request in requests]
        with psycopg.connect(self._database_url) as connection:
            recorded = self._recorded(connection, task_ids)
        signals = self._agent.signals()
        for task_id in task_ids:
            if recorded.get(task_id) != 1:
                raise WrongOutcomeError(f"{task_id} is recorded {recorded.get(task_id, 0)} times")
            if not signals[task_id]:
                raise WrongOutcomeError(f"the agent has no signal for {task_id}")

    def _prepare(self) -> None:  # noqa: B027 - a peer may need nothing
        """Prepares the database after the server has created the tables."""

    @abstractmethod
    def _recorded(
        self, connection: "psycopg.Connection[Any]", task_ids: Sequence[str]
    ) -> dict[str, int]:
        """For each of these tasks, how many times its cancellation is recorded."""


@contextmanager
def _database(server_url: str, name: str) -> Iterator[str]:
    """Creates an empty database. At the end of the block, ends its sessions and drops it."""
    server = urlsplit(server_url)
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"postgresql://{server.netloc}/{name}?{server.query}"
        finally:
            connection.execute(drop)
