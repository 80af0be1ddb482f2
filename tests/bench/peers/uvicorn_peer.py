"""What the peers have in common: an ASGI application that uvicorn runs, and a database."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from evershell.app.settings import Settings
from tests.bench.peers import Address, HttpRequest, WrongOutcomeError, agent
from tests.bench.peers.database import PeerDatabase
from tests.bench.peers.server_process import ServerProcess

# As many connections as a worker of this service has by default.
_POOL_SIZE: int = Settings.model_fields["pool_size"].default


class UvicornPeer(ABC):
    """A peer. It can be started again after it was stopped, with an empty database."""

    name: str
    # The module that has the application, as `app`.
    _module: ClassVar[str]

    def __init__(self) -> None:
        self._key = f"sk_{secrets.token_urlsafe(32)}"
        self._process: ServerProcess | None = None

    def start(self, database_url: str, agent_address: Address, folder: Path) -> None:
        self._agent_address = agent_address
        self._database = PeerDatabase(database_url, f"peer_{self.name}")
        self._database.create()
        self._process = ServerProcess(self.name, folder)
        try:
            self._process.start(self._command(*self._process.address), self._environment())
            self._prepare()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> Address:
        assert self._process is not None
        return self._process.address

    @property
    def pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid]

    @abstractmethod
    def arm(self, count: int) -> Sequence[HttpRequest]: ...

    def check(self, requests: Sequence[HttpRequest]) -> None:
        recorded = self._recorded([request.task_id for request in requests])
        signals = agent.signals(self._agent_address)
        for task_id in (request.task_id for request in requests):
            if recorded.get(task_id) != 1:
                raise WrongOutcomeError(f"{task_id} is recorded {recorded.get(task_id, 0)} times")
            if not signals[task_id]:
                raise WrongOutcomeError(f"the agent has no signal for {task_id}")

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.stop()
        self._process = None
        self._database.drop()

    @abstractmethod
    def _prepare(self) -> None:
        """Prepares the database, whose tables the server has created."""

    @abstractmethod
    def _recorded(self, task_ids: Sequence[str]) -> dict[str, int]:
        """How often the cancellation of each of these tasks is recorded."""

    def _command(self, host: str, port: int) -> list[str]:
        options = {
            "--host": host,
            "--port": str(port),
            "--workers": "1",
            "--loop": "uvloop",
            "--http": "httptools",
            "--log-level": "warning",
        }
        words = [word for option in options.items() for word in option]
        return ["uvicorn", f"{self._module}:app", "--no-access-log", *words]

    def _environment(self) -> dict[str, str]:
        host, port = self._agent_address
        return {
            **self._database.settings,
            "POOL_SIZE": str(_POOL_SIZE),
            "AGENT_URL": f"http://{host}:{port}",
            "AGENT_GRPC_ADDRESS": f"{host}:{port + 1}",
        }
