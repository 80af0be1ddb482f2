"""Runs a Python module that serves a port of this machine, in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.bench.peers import Address
from tests.support.ports import free_ports
from tests.support.waiting import eventually

_ROOT = Path(__file__).parents[3]
# The first start after the packages were installed compiles them.
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ServerProcess:
    """A server on a free port of loopback. It writes its output to `<name>.log` in the folder.

    The next port is free as well.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        self.address: Address = ("127.0.0.1", free_ports(1, in_a_row=2)[0])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process. It must have been started."""
        assert self._process is not None
        return self._process.pid

    def start(self, module: Sequence[str], environment: Mapping[str, str]) -> None:
        """Runs `python -m` with the module and its arguments. Returns when it accepts connections.

        Raises RuntimeError with the log if the process ends, and TimeoutError after 60 s.
        """
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=_ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(self._accepts, _START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the process, and kills it if it takes longer than 10 s."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self._process.kill()
        self._process.wait()
        self._process = None

    def _accepts(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self._name} has ended:\n{self._log.read_text(errors='replace')}")
        try:
            socket.create_connection(self.address, timeout=1).close()
        except OSError:
            return False
        return True
