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

# As many connections as a worker of this service has by default.
_POOL_SIZE: int = Settings.model_fields["pool_size"].default


class WrongOutcomeError(Exception):
    """A cancellation that was answered is not recorded exactly once, or its agent has no signal."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST of a peer's API: the cancellation of one running task."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    # The task that it cancels.
    task_id: str

    def encoded(self, address: str) -> bytes:
        """The request as it is sent to the address."""
        return http1.request(address, self.path, self.headers, self.body)


class Peer(ABC):
    """A server that cancels tasks."""

    name: ClassVar[str]
    # The module of the server, which takes its port as an argument.
    _module: ClassVar[str]

    def __init__(self) -> None:
        self._key = f"sk_{secrets.token_urlsafe(32)}"
        # The host and port of the server, and its process, while it runs.
        self.address = ""
        self.pids: Sequence[int] = ()

    @contextmanager
    def running(self, server_url: str, agent: Agent, folder: Path) -> Iterator[None]:
        """Runs the server inside the block, with an empty database on this PostgreSQL server.

        The folder is for its log.
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
        """Starts `count` tasks, and returns a request for each that cancels it."""

    def check(self, requests: Sequence[HttpRequest]) -> None:
        """Reads from the database that each of these cancellations is recorded exactly once.

        Also asks the agent whether it has a signal for each. All requests must have been answered.
        Raises WrongOutcomeError if something is missing or recorded twice.
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
        """Prepares the database, whose tables the server has created."""

    @abstractmethod
    def _recorded(
        self, connection: "psycopg.Connection[Any]", task_ids: Sequence[str]
    ) -> dict[str, int]:
        """How often the cancellation of each of these tasks is recorded."""


@contextmanager
def _database(server_url: str, name: str) -> Iterator[str]:
    """An empty database, which is dropped in the end, with the sessions that it still has."""
    server = urlsplit(server_url)
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"postgresql://{server.netloc}/{name}?{server.query}"
        finally:
            connection.execute(drop)
