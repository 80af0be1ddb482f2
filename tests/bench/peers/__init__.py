"""The peers: what people would build instead of this service, made for a comparison of speed.

Each peer runs in a process of its own, with one worker, as many connections to the database as a
worker of this service, and the log level `warning`. It has a database of its own on the given
server, and signals an agent: FastAPI's over HTTP,
that of a2a-sdk over gRPC. The packages of the peers are in the extra `bench`; only
the modules `*_app` and `agent` import them, in processes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Address = tuple[str, int]


class WrongOutcomeError(Exception):
    """A cancellation that was answered is not recorded exactly once, or its agent has no signal."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A cancellation of one running task, over HTTP/1.1."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    # The task that it cancels.
    task_id: str

    def encoded(self, address: Address) -> bytes:
        """The request as it is sent to the address, with `Host` and `Content-Length`."""
        host, port = address
        fields = {"Host": f"{host}:{port}", "Content-Length": len(self.body), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


class Peer(Protocol):
    """A server that cancels tasks, in a process of its own."""

    name: str

    def start(self, database_url: str, agent_address: Address, folder: Path) -> None:
        """Creates the peer's database and starts its server. Returns when the server answers.

        Args:
            database_url: A URL of a PostgreSQL server on which the peer may create a database.
            agent_address: The address of the agent, an instance of `agent.Agent`.
            folder: An existing folder for the server's log.

        Raises:
            RuntimeError: The server has ended; the message has its log.
            TimeoutError: The server does not answer within 60 s.
        """

    @property
    def address(self) -> Address:
        """The host and the port of the server."""

    @property
    def pids(self) -> list[int]:
        """The processes of the server, without those of the database and the agent."""

    def arm(self, count: int) -> Sequence[HttpRequest]:
        """Makes `count` running tasks, and returns a request for each that cancels it."""

    def check(self, requests: Sequence[HttpRequest]) -> None:
        """Reads from the database that each of these cancellations is recorded exactly once.

        Also asks the agent whether it has a signal for each. All requests must have been answered.

        Raises:
            WrongOutcomeError: Something is missing or recorded twice.
        """

    def stop(self) -> None:
        """Stops the server and drops its database. Does nothing if it was not started."""
