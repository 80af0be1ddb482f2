"""Keeps programs running: starts them, starts again what has died, and ends them when asked to."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from server.pod.process import become_subreaper, wait_exit
from server.stack.log_files import open_log

log = structlog.get_logger()

_RESTART_BACKOFF_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0)
# A program that ran this long before it died starts again at once.
_STABLE_SECONDS = 10.0
# How often the memory of each program is checked, and the kernel's limit in between, relative to
# the program's limit.
_MEMORY_CHECK_SECONDS = 1.0
_KERNEL_LIMIT_FACTOR = 1.25
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Program:
    """A program to keep running."""

    name: str
    # One that differs from start to start is asked for before each.
    command: list[str] | Callable[[], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    # How long it may take to stop before it is killed.
    stop_seconds: float = 4.0
    process: subprocess.Popen[bytes] | None = None
    keeping: asyncio.Task[None] | None = None


class Supervisor:
    """Runs programs as its children, each in a session of its own: a Ctrl-C in the terminal reaches
    the supervisor alone.

    A program that uses more memory than `memory_bytes` is killed and restarted. The kernel limits
    it to a quarter more than that, however fast it grows.
    """

    def __init__(self, logs_dir: Path, memory_bytes: int | None = None) -> None:
        self._logs_dir = logs_dir
        self._memory_bytes = memory_bytes
        self._programs: list[Program] = []
        # Processes whose successors run already, and what waits for their end.
        self._leaving: dict[subprocess.Popen[bytes], asyncio.Task[None]] = {}
        # What a program of ours leaves behind when it dies becomes our child, and is reaped here.
        become_subreaper()

    async def start(self, program: Program) -> None:
        """Starts the program and keeps it running. Raises OSError when it cannot be started."""
        self._programs.append(program)
        self._run(program)

    async def stop(self, *names: str) -> None:
        """Ends the programs of these names, together: asked first, killed when their time is over."""
        await asyncio.gather(
            *(self._stop(program) for program in self._programs if program.name in names)
        )
        self._programs = [program for program in self._programs if program.name not in names]

    async def stop_all(self) -> None:
        """Ends every program, the last to be started first."""
        for program in list(reversed(self._programs)):
            await self.stop(program.name)
        leaving = list(self._leaving.items())
        for process, _ in leaving:
            process.kill()
        await asyncio.gather(*(task for _, task in leaving), return_exceptions=True)

    async def restart(self, name: str) -> None:
        """Ends the program as `stop` does, and starts it again. Raises OSError."""
        program = self._find(name)
        await self._stop(program)
        self._run(program)

    async def replace(
        self, name: str, command: list[str], leave_seconds: float
    ) -> "subprocess.Popen[bytes]":
        """Starts the program by this command beside the process that runs, and keeps the new one
        running from here on.

        Returns the old process. It is to end by itself within that time; then it is asked to, and
        killed. Raises OSError.
        """
        program = self._find(name)
        await _give_up(program.keeping)
        old = program.process
        assert old is not None
        self._spawn(program, command)
        program.keeping = asyncio.create_task(self._keep(program))
        self._leaving[old] = asyncio.create_task(self._await_exit(program, old, leave_seconds))
        return old

    async def left(self) -> None:
        """Returns when all processes that have been replaced are gone."""
        await asyncio.gather(*self._leaving.values())

    def send_signal(self, number: signal.Signals, prefix: str) -> None:
        """Sends the signal to the programs whose name begins with it."""
        for program in self._programs:
            if program.name.startswith(prefix) and program.process is not None:
                # One that has just ended is not sent it.
                program.process.send_signal(number)

    def names(self, prefix: str) -> list[str]:
        """The names of the programs that begin with it."""
        return [program.name for program in self._programs if program.name.startswith(prefix)]

    def reap(self) -> None:
        """Clears away ended processes that became ours when their parent died; our own programs are
        waited for elsewhere.
        """
        own = self.own_pids()
        for child in psutil.Process().children():
            if child.pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)

    def own_pids(self) -> set[int]:
        """The ids of the children that this process has started: its programs, and the processes in
        its own session.

        A child that was adopted when its parent died comes from a program, and therefore from
        another session.
        """
        own = {*self.pids().values(), *(process.pid for process in self._leaving)}
        for child in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(child.pid) == os.getsid(0):
                    own.add(child.pid)
        return own

    def pids(self) -> dict[str, int]:
        """Program → process id, of those that run."""
        return {
            program.name: program.process.pid
            for program in self._programs
            if program.process is not None
        }

    def _find(self, name: str) -> Program:
        return next(program for program in self._programs if program.name == name)

    def _spawn(self, program: Program, command: list[str] | None = None) -> None:
        if command is None:
            command = program.command if isinstance(program.command, list) else program.command()
        with open_log(self._logs_dir, f"{program.name}.log") as output:
            program.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **program.environment},
                start_new_session=True,
                preexec_fn=lambda: self._prepare(program),
            )

    def _prepare(self, program: Program) -> None:
        """Runs in the child, before the program."""
        # If the supervisor is killed, the kernel ends the program.
        _libc.prctl(_PR_SET_PDEATHSIG, program.stop_signal, 0, 0, 0)
        if self._memory_bytes is not None:
            # Only the soft limit, because an agent, which inherits it from the controller, raises
            # it again.
            soft = int(self._memory_bytes * _KERNEL_LIMIT_FACTOR)
            resource.setrlimit(
                resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1])
            )

    async def _ended(self, program: Program) -> int:
        """Waits for the end of the program and returns its exit code. Kills it if it uses too much
        memory.
        """
        assert program.process is not None
        process = program.process
        ending = asyncio.ensure_future(exit_code(process))
        try:
            while not (await asyncio.wait((ending,), timeout=_MEMORY_CHECK_SECONDS))[0]:
                taken = _memory_bytes(process)
                if self._memory_bytes is not None and taken > self._memory_bytes:
                    log.error("program_over_memory_limit", name=program.name, memory_mb=taken >> 20)
                    process.kill()
            return ending.result()
        finally:
            ending.cancel()

    async def _keep(self, program: Program) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._ended(program)
            failures = 0 if time.monotonic() - began > _STABLE_SECONDS else failures + 1
            log.warning("program_ended", name=program.name, exit_code=code)
            await self._spawn_again(program, failures)

    async def _spawn_again(self, program: Program, failures: int) -> None:
        """Starts the program after a backoff. Retries while it cannot be started, for example for
        lack of memory.
        """
        while True:
            await asyncio.sleep(
                _RESTART_BACKOFF_SECONDS[min(failures, len(_RESTART_BACKOFF_SECONDS) - 1)]
            )
            try:
                self._spawn(program)
                return
            except (OSError, subprocess.SubprocessError) as error:
                log.error("program_not_started", name=program.name, error=str(error))
                failures += 1

    def _run(self, program: Program) -> None:
        self._spawn(program)
        program.keeping = asyncio.create_task(self._keep(program))

    async def _await_exit(
        self, program: Program, process: "subprocess.Popen[bytes]", leave_seconds: float
    ) -> None:
        try:
            async with asyncio.timeout(leave_seconds):
                await exit_code(process)
        except TimeoutError:
            log.warning("program_leave_timed_out", name=program.name)
            await self._end(program, process)
        finally:
            del self._leaving[process]

    async def _stop(self, program: Program) -> None:
        await _give_up(program.keeping)
        if program.process is not None:
            await self._end(program, program.process)

    async def _end(self, program: Program, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(program.stop_signal)
        try:
            async with asyncio.timeout(program.stop_seconds):
                await exit_code(process)
        except TimeoutError:
            log.warning("program_stop_timed_out", name=program.name)
            process.kill()
            await exit_code(process)


def _memory_bytes(process: "subprocess.Popen[bytes]") -> int:
    try:
        return int(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        # The process has just ended.
        return 0


async def _give_up(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a child and returns its exit code."""
    await wait_exit(process.pid)
    return process.wait()
