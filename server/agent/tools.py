"""The tool that models may call: a shell command in the workspace's files."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from server.agent.descendants import Descendants
from server.agent.output import BoundedOutput
from server.agent.working_directory import DirectoryLostError, WorkingDirectory
from server.pod.process import EPOCH_MARKER, WORKSPACE_MARKER

# How long output may still come when the shell itself has exited.
_LATE_OUTPUT_SECONDS = 0.2
# How long a process that was killed is waited for; one that hangs in the kernel must not hold the
# agent.
_KILLED_SECONDS = 1.0
_READ_BYTES = 64 * 1024
_REAP_SECONDS = 0.2


class ToolStatus(StrEnum):
    """See ToolResult.Status in the protos."""

    EXITED = "exited"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What the model wants done. The arguments are a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What came of a tool call. The exit code is minus the number of the signal for a process that
    one ended.
    """

    status: ToolStatus
    exit_code: int = 0
    output: str = ""
    truncated_bytes: int = 0


class ToolFailure(Exception):
    """No tool can be run here any more; the text says why, for people."""


class Tool(Protocol):
    """Does what models ask for."""

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        """Runs the call to its end; what goes wrong in it is a result, too. Raises ToolFailure.

        Once `interrupt` is set, everything it started is ended and the result, `interrupted`, holds
        the output so far. The same when it is cancelled, but without a result.
        """


class ShellTool:
    """Runs `/bin/sh -c command` in a process group of its own, in the workspace's files, with an
    environment that holds no secret.

    Standard input is empty; standard output and error are one text. Nothing outlives its tool call:
    when the shell has exited, output of processes that it left behind is awaited for 0.2 s, then
    the process group and every other descendant are killed, in whichever session and with whatever
    environment. What the command had another program start (a container engine, a job scheduler) is
    no descendant and goes on.
    """

    name = "shell"

    def __init__(
        self, files_dir: Path, workspace_id: str, epoch: int, timeout_seconds: float
    ) -> None:
        """Raises OSError when the directory cannot be opened."""
        self._directory = WorkingDirectory(files_dir)
        self._timeout_seconds = timeout_seconds
        self._environment: Mapping[str, str] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._directory.path),
            "LANG": "C.UTF-8",
            WORKSPACE_MARKER: workspace_id,
            EPOCH_MARKER: str(epoch),
        }

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        """See Tool. Whatever cannot be started is `not_run`, and the output says why; without the
        files nothing ever could.
        """
        try:
            command = _command(call)
        except ValueError as error:
            return ToolResult(status=ToolStatus.NOT_RUN, output=str(error))
        try:
            self._directory.check()
        except DirectoryLostError as error:
            raise ToolFailure(str(error)) from error
        descendants = Descendants()
        read_end, write_end = os.pipe()
        # The pipe is ours, not asyncio's: its `wait` would last until the last holder of the pipe
        # is gone.
        with os.fdopen(read_end, "rb", buffering=0) as reader:
            try:
                process = await asyncio.create_subprocess_exec(
                    "/bin/sh",
                    "-c",
                    command,
                    cwd=self._directory.by_descriptor,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=asyncio.subprocess.STDOUT,
                    # A process group of its own, by which the command is ended.
                    process_group=0,
                )
            except (OSError, ValueError) as error:
                return ToolResult(
                    status=ToolStatus.NOT_RUN, output=f"The command could not be started: {error}"
                )
            except asyncio.CancelledError:
                descendants.kill()
                raise
            finally:
                os.close(write_end)
            return await self._follow(_Running(process, descendants, reader.fileno()), interrupt)

    async def _follow(self, running: "_Running", interrupt: asyncio.Event) -> ToolResult:
        exited = asyncio.ensure_future(running.process.wait())
        interrupted = asyncio.ensure_future(interrupt.wait())
        reaping = asyncio.ensure_future(running.keep_reaping())
        running.start_reading()
        try:
            await asyncio.wait(
                {exited, interrupted},
                timeout=self._timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                status = ToolStatus.EXITED
                await running.wait_output(_LATE_OUTPUT_SECONDS, interrupt=interrupted)
            else:
                status = ToolStatus.INTERRUPTED if interrupted.done() else ToolStatus.TIMED_OUT
            running.kill()
            await asyncio.wait({exited}, timeout=_KILLED_SECONDS)
            await running.wait_output(_KILLED_SECONDS)
        finally:
            interrupted.cancel()
            reaping.cancel()
            running.stop_reading()
            # Also when this call is cancelled: once it is over, nothing of it runs.
            if not exited.done():
                running.kill()
                await asyncio.wait({exited}, timeout=_KILLED_SECONDS)
                exited.cancel()
            await running.wait_gone(_KILLED_SECONDS)
        output, truncated_bytes = running.output.finish()
        # None: killed, and hanging in the kernel.
        exit_code = (
            running.process.returncode
            if running.process.returncode is not None
            else -signal.SIGKILL
        )
        return ToolResult(
            status=status, exit_code=exit_code, output=output, truncated_bytes=truncated_bytes
        )


class _Running:
    """A shell that was started, and its output."""

    def __init__(
        self, process: asyncio.subprocess.Process, descendants: Descendants, read_end: int
    ) -> None:
        self.process = process
        self.output = BoundedOutput()
        self._descendants = descendants
        self._read_end = read_end
        self._ended = asyncio.Event()

    def start_reading(self) -> None:
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._read_end)

    def _read(self) -> None:
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return
        self.output.feed(data)
        if not data:
            self.stop_reading()
            self._ended.set()

    async def wait_output(
        self, timeout_seconds: float, interrupt: "asyncio.Future[Any] | None" = None
    ) -> None:
        """Returns when the last holder of the pipe has closed it, at the time limit, or when
        interrupted.
        """
        ended = asyncio.ensure_future(self._ended.wait())
        either: set[asyncio.Future[Any]] = {ended} if interrupt is None else {ended, interrupt}
        try:
            await asyncio.wait(either, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()

    async def wait_gone(self, timeout_seconds: float) -> None:
        await self._descendants.wait_gone(self.process.pid, timeout_seconds)

    def kill(self) -> None:
        """Ends the process group, and what has left it."""
        # The kernel gives the shell's number to no other process while its group has a member.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._descendants.kill(self.process.pid)

    async def keep_reaping(self) -> None:
        """Reaps orphans until it is cancelled, so that a command that leaves many behind does not use
        up the machine's process ids.
        """
        while True:
            await asyncio.sleep(_REAP_SECONDS)
            self._descendants.reap(self.process.pid)


def _command(call: ToolCall) -> str:
    """The command of the call. Raises ValueError, with a text for the model."""
    if call.name != ShellTool.name:
        raise ValueError(f"There is no tool {call.name!r}. The only one is {ShellTool.name!r}.")
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    command = arguments.get("command") if isinstance(arguments, dict) else None
    if not isinstance(command, str):
        raise ValueError('The arguments must be a JSON object with the text "command".')
    return command
