"""Starts processes for the bench, and reads the processor time and memory of any process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ports import free_ports
from tests.support.stack import ROOT
from tests.support.waiting import eventually

# Long enough for the first start after an installation, which compiles the packages.
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


@contextmanager
def started(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Inside the block, runs a command in a folder. The output of the command goes to the log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)


@contextmanager
def running(
    module: str,
    port: int,
    *arguments: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs `python -m module port arguments…`. The block begins when it listens on the port."""
    command = [sys.executable, "-m", module, str(port), *arguments]
    with started(command, log, environment) as process:
        await_listening(process, port, log)
        yield process


def await_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Waits until the process listens on the port. Fails with its log if it ends first."""

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in psutil.Process(process.pid).net_connections("tcp")
        )

    eventually(listens, _START_SECONDS)


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the process through its `with` blocks, so that no server keeps running."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def free_port() -> int:
    """A free port below the ephemeral range, which the kernel uses for outgoing connections."""
    return free_ports(1)[0]


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time that these processes have used so far.

    The scheduler counts the time of each thread in nanoseconds. Threads and processes that have
    ended, such as maintenance workers of PostgreSQL, are not included.
    """
    nanoseconds = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def private_bytes(pid: int) -> int:
    """The memory of the process that it does not share with other processes."""
    return int(psutil.Process(pid).memory_full_info().uss)


def descendants(pid: int, name: str) -> list[int]:
    """The ids of all descendants of the process that have this name."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if child.name() == name:
                found.append(child.pid)
    return found
