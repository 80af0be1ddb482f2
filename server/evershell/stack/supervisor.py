"""Starts programs, restarts programs that have ended or are frozen, and stops them on request."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from evershell.backoff import backoff
from evershell.pod.process import become_subreaper, has_ended_child, wait_exit
from evershell.stack.frozen import SAMPLE_SECONDS, Finding, FrozenPrograms
from evershell.stack.log_files import LogFile
from evershell.stack.watchdogs import IsLive, count_answers, kill_if_over_memory, look_at
from evershell.telemetry import turns
from evershell.telemetry.turns import TurnCount

log = structlog.get_logger()

# A program that ran for this long before it ended is restarted without a pause.
_STABLE_SECONDS = 10.0
# Between two checks of the memory, the kernel enforces a limit that is this many times the
# program's own limit.
_KERNEL_LIMIT_FACTOR = 1.25
# How long the last lines of the logs may take to reach the disk.
_LOG_END_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Program:
    """A program to keep running."""

    name: str
    # If this is a function, it is called before each start, in a thread.
    command: list[str] | Callable[[], list[str]]
    # The whole environment of the program.
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_signal: signal.Signals = signal.SIGTERM
    # How long the program may take to stop before it is killed.
    stop_seconds: float = 4.0
    # Whether the program counts the turns of its event loop: evershell.telemetry.turns.
    counts_turns: bool = False
    # Asks a program that does not count turns whether it is live; None to ask nothing.
    is_live: IsLive | None = None
    process: subprocess.Popen[bytes] | None = None
    keeping: asyncio.Task[None] | None = None
    # The turns that the running process has counted, and how often it has said that it is live.
    turn_count: TurnCount | None = None
    answers: int = 0

    @property
    def kind(self) -> str:
        """The kind of the program: for example, `worker-0` and `worker-1` are of the kind `worker`.

        Programs of one kind do the same work.
        """
        return self.name.partition("-")[0]

    @property
    def turns(self) -> int | None:
        """The turns of the running process, or else its answers; None if neither is counted."""
        if self.turn_count is not None:
            return self.turn_count.read()
        return None if self.is_live is None else self.answers

    def count_answer(self) -> None:
        self.answers += 1


class Supervisor:
    """Runs programs as child processes.

    Each program has its own session, so that Ctrl-C in the terminal reaches only the supervisor.

    A program that uses more memory than `memory_bytes` is killed and restarted. Between two checks,
    the kernel enforces a limit that is a quarter higher. Without `memory_bytes` there is no limit.

    A program that is frozen (evershell.stack.frozen) is killed and restarted, too.

    A program's log is `<name>.log` in `logs_dir`. At `log_max_bytes`, it is rotated.
    """

    def __init__(
        self,
        logs_dir: Path,
        memory_bytes: int | None = None,
        *,
        log_max_bytes: int = sys.maxsize,
        log_files: int = 1,
    ) -> None:
        self._logs_dir = logs_dir
        self._memory_bytes = memory_bytes
        self._log_max_bytes = log_max_bytes
        self._log_files = log_files
        self._logs: dict[str, LogFile] = {}
        self._programs: list[Program] = []
        # Replaced processes that still run, each with the task that waits for its end.
        self._predecessors: dict[subprocess.Popen[bytes], asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        # The descendants of a program that has ended become children of this process, so that it
        # can end and reap them.
        become_subreaper()

    async def start(self, program: Program) -> None:
        """Starts the program and keeps it running. Raises OSError if it cannot be started."""
        if program.name not in self._logs:
            path = self._logs_dir / f"{program.name}.log"
            self._logs[program.name] = LogFile(path, self._log_max_bytes, self._log_files)
        self._programs.append(program)
        await self._run(program)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self, *names: str) -> None:
        """Stops the programs with these names concurrently.

        Sends each program its stop signal, and kills the program if it still runs after its
        `stop_seconds`. From now on, no frozen program is replaced, because the stack ends.
        """
        await self._end_watch()
        await asyncio.gather(
            *(self._stop(program) for program in self._programs if program.name in names)
        )
        self._programs = [program for program in self._programs if program.name not in names]

    async def stop_all(self) -> None:
        """Stops all programs, in the reverse order of their starts. Kills replaced processes."""
        await self._end_watch()
        for program in list(reversed(self._programs)):
            await self.stop(program.name)
        predecessors = list(self._predecessors.items())
        for process, _ in predecessors:
            process.kill()
        await asyncio.gather(*(task for _, task in predecessors), return_exceptions=True)
        for log_file in self._logs.values():
            log_file.close()
        end = time.monotonic() + _LOG_END_SECONDS
        for log_file in self._logs.values():
            await asyncio.to_thread(log_file.wait, max(0.0, end - time.monotonic()))
        self._logs.clear()

    def kill_all(self) -> None:
        """Kills all programs, and restarts none. A `stop` that waits for a program then returns."""
        log.warning("programs_killed", names=[program.name for program in self._programs])
        for program in self._programs:
            if program.keeping is not None:
                program.keeping.cancel()
            if program.process is not None:
                program.process.kill()

    async def restart(self, name: str) -> None:
        """Stops the program and starts it again. Raises OSError."""
        program = self._find(name)
        await self._stop(program)
        await self._run(program)

    async def has_turned(self, name: str) -> bool:
        """Whether the event loop of the running process has made a turn."""
        return bool(self._find(name).turns)

    async def replace(
        self, name: str, command: list[str], leave_seconds: float
    ) -> "subprocess.Popen[bytes]":
        """Starts a second process of the program with this command, and keeps the new process
        running. Returns the old process, which must end within `leave_seconds`. After that time it
        is stopped in the same way as in `stop`. Raises OSError.
        """
        program = self._find(name)
        await _cancel(program.keeping)
        old = program.process
        assert old is not None
        self._execute(program, command)
        program.keeping = asyncio.create_task(self._keep(program))
        self._predecessors[old] = asyncio.create_task(self._await_exit(program, old, leave_seconds))
        return old

    async def wait_predecessors(self) -> None:
        await asyncio.gather(*self._predecessors.values())

    def send_signal(self, number: signal.Signals, prefix: str) -> None:
        """Sends the signal to the programs whose names start with the prefix."""
        for program in self._programs:
            if program.name.startswith(prefix) and program.process is not None:
                # Does nothing if the process has just ended.
                program.process.send_signal(number)

    def names(self, prefix: str) -> list[str]:
        return [program.name for program in self._programs if program.name.startswith(prefix)]

    def reap(self) -> None:
        """Reaps ended children that this process has inherited from its programs."""
        # Listing the children is slow, because it reads all processes of the machine.
        if not has_ended_child():
            return
        own = self.own_pids()
        for child in psutil.Process().children():
            if child.pid not in own:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)

    def own_pids(self) -> set[int]:
        """The ids of the children that this process has started itself.

        These are its programs, and all children in its own session. An inherited child was started
        by a program, and therefore belongs to another session.
        """
        own = {*self.pids().values(), *(process.pid for process in self._predecessors)}
        for child in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(child.pid) == os.getsid(0):
                    own.add(child.pid)
        return own

    def pids(self) -> dict[str, int]:
        """Maps the names of the running programs to their process ids."""
        return {
            program.name: program.process.pid
            for program in self._programs
            if program.process is not None
        }

    def _find(self, name: str) -> Program:
        return next(program for program in self._programs if program.name == name)

    async def _spawn(self, program: Program) -> None:
        command = program.command
        if not isinstance(command, list):
            command = await asyncio.to_thread(command)
        self._execute(program, command)

    def _execute(self, program: Program, command: list[str]) -> None:
        output = self._logs[program.name].descriptor
        count = TurnCount() if program.counts_turns else None
        passed = {turns.VARIABLE: str(count.descriptor)} if count is not None else {}
        try:
            program.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=program.environment | passed,
                pass_fds=(count.descriptor,) if count is not None else (),
                start_new_session=True,
                preexec_fn=lambda: self._prepare(program),
            )
        finally:
            if count is not None:
                count.close_descriptor()
        program.turn_count, program.answers = count, 0

    def _prepare(self, program: Program) -> None:
        """Runs in the child, before the program."""
        # If the supervisor is killed, the kernel sends the program its stop signal.
        _libc.prctl(_PR_SET_PDEATHSIG, program.stop_signal, 0, 0, 0)
        if self._memory_bytes is not None:
            # Sets only the soft limit, because an agent inherits it from the controller and must
            # raise it again for its tools.
            soft = int(self._memory_bytes * _KERNEL_LIMIT_FACTOR)
            resource.setrlimit(
                resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1])
            )

    async def _wait_exit(self, program: Program) -> int:
        """Waits for the exit of the program and returns its exit code.

        Meanwhile kills the program if it uses more memory than the limit, and counts its answers.
        """
        assert program.process is not None
        process = program.process
        watching = [
            asyncio.create_task(kill_if_over_memory(program.name, process, self._memory_bytes)),
            asyncio.create_task(count_answers(program.is_live, program.count_answer)),
        ]
        try:
            return await exit_code(process)
        finally:
            for task in watching:
                task.cancel()

    async def _end_watch(self) -> None:
        await _cancel(self._watching)
        self._watching = None

    async def _watch(self) -> None:
        """Kills programs that are frozen. `_keep` starts them again."""
        frozen = FrozenPrograms()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            try:
                self._look(frozen)
            except Exception:
                log.exception("programs_not_watched")

    def _look(self, frozen: FrozenPrograms) -> None:
        # A program that is being stopped is not watched.
        kept = {
            program.name: program
            for program in self._programs
            if program.keeping is not None and not program.keeping.done()
        }
        samples = {
            name: sample
            for name, each in kept.items()
            if each.process is not None
            and (sample := look_at(each.process.pid, each.kind, each.turns)) is not None
        }
        for finding in frozen.find(samples, time.monotonic()):
            self._act(kept[finding.name], finding)

    def _act(self, program: Program, finding: Finding) -> None:
        log.error(
            "program_frozen" if finding.is_replaced else "program_silent",
            name=finding.name,
            reason=finding.reason.value,
            seconds=round(finding.seconds, 1),
            processor_seconds=round(finding.processor_seconds, 1),
        )
        if finding.is_replaced and program.process is not None:
            program.process.kill()

    async def _keep(self, program: Program) -> None:
        failures = 0
        while True:
            started_at = time.monotonic()
            code = await self._wait_exit(program)
            failures = 0 if time.monotonic() - started_at > _STABLE_SECONDS else failures + 1
            log.warning("program_ended", name=program.name, exit_code=code)
            await self._spawn_with_retries(program, failures)

    async def _spawn_with_retries(self, program: Program, failures: int) -> None:
        """Starts the program after a pause, which grows with the number of failures.

        Retries if the program cannot be started, for example for lack of memory.
        """
        while True:
            await asyncio.sleep(backoff(failures, first=0.2, longest=2.0, spread=0.0))
            try:
                await self._spawn(program)
                return
            except (OSError, subprocess.SubprocessError) as error:
                log.error("program_not_started", name=program.name, error=str(error))
                failures += 1

    async def _run(self, program: Program) -> None:
        await self._spawn(program)
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
            del self._predecessors[process]

    async def _stop(self, program: Program) -> None:
        await _cancel(program.keeping)
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


async def _cancel(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Waits for the exit of a child process and returns its exit code."""
    await wait_exit(process.pid)
    return process.wait()
