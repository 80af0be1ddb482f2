"""Keeps programs running: starts them, starts again what has died, and ends them when asked to."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

log = structlog.get_logger("supervisor")

_RESTART_BACKOFF_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0)
# A program that ran this long before it died starts again at once.
_STABLE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Program:
    """A program to keep running."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    # How long it may take to stop before it is killed.
    stop_seconds: float = 4.0
    process: subprocess.Popen[bytes] | None = None
    keeping: asyncio.Task[None] | None = None


class Supervisor:
    """Runs programs as its children, each in a session of its own: a Ctrl-C in the terminal reaches the supervisor alone."""

    def __init__(self, logs_dir: Path) -> None:
        self._logs_dir = logs_dir
        self._programs: list[Program] = []
        logs_dir.mkdir(parents=True, exist_ok=True)
        # What a program of ours leaves behind when it dies becomes our child, and is reaped here.
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    async def start(self, program: Program) -> None:
        """Starts the program and keeps it running. Raises OSError when it cannot be started."""
        self._programs.append(program)
        self._spawn(program)
        program.keeping = asyncio.create_task(self._keep(program))

    async def stop(self, *names: str) -> None:
        """Ends the programs of these names, together: asked first, killed when their time is over."""
        await asyncio.gather(*(self._stop(program) for program in self._programs if program.name in names))
        self._programs = [program for program in self._programs if program.name not in names]

    async def stop_all(self) -> None:
        """Ends every program, the last to be started first."""
        for program in list(reversed(self._programs)):
            await self.stop(program.name)

    def names(self, prefix: str) -> list[str]:
        """The names of the programs that begin with it."""
        return [program.name for program in self._programs if program.name.startswith(prefix)]

    def reap(self) -> None:
        """Clears away ended processes that became ours when their parent died; our own programs are waited for elsewhere."""
        own = set(self.pids().values())
        for child in psutil.Process().children():
            if child.pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)

    def pids(self) -> dict[str, int]:
        """Program → process id, of those that run."""
        return {program.name: program.process.pid for program in self._programs if program.process is not None}

    def _spawn(self, program: Program) -> None:
        with (self._logs_dir / f"{program.name}.log").open("ab") as output:
            program.process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **program.environment},
                start_new_session=True,
                # Should the supervisor be killed, nothing of it stays.
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, program.stop_signal, 0, 0, 0),
            )

    async def _keep(self, program: Program) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            assert program.process is not None
            code = await ended(program.process)
            failures = 0 if time.monotonic() - began > _STABLE_SECONDS else failures + 1
            log.warning("program ended, starting it again", name=program.name, exit_code=code)
            await asyncio.sleep(_RESTART_BACKOFF_SECONDS[min(failures, len(_RESTART_BACKOFF_SECONDS) - 1)])
            self._spawn(program)

    async def _stop(self, program: Program) -> None:
        if program.keeping is not None:
            program.keeping.cancel()
            await asyncio.gather(program.keeping, return_exceptions=True)
        process = program.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(program.stop_signal)
        try:
            async with asyncio.timeout(program.stop_seconds):
                await ended(process)
        except TimeoutError:
            log.warning("program did not stop in time, killing it", name=program.name)
            process.kill()
            await ended(process)


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a child and returns its exit code."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return process.wait()
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
