"""The tool that models may call: a shell command in the workspace's folder."""

import asyncio
import codecs
import json
import os
import signal
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from evershell.agents.active_task import TaskFailed
from evershell.agents.descendants import Descendants
from evershell.agents.own_keys import redacted_end, without_parts
from evershell.pod.process import EPOCH_VARIABLE, WORKSPACE_VARIABLE
from evershell.pod.sandbox import ToolSandbox

# How long to wait for more output after the shell has exited.
_LATE_OUTPUT_SECONDS = 0.2
# The maximum number of reads in a row, so that a flood of output does not block the event loop.
_READS_AT_ONCE = 16
# How long to wait for the end of a killed process, which may hang in the kernel.
_KILLED_SECONDS = 1.0
_READ_BYTES = 64 * 1024
# The interval between checks of the memory. In this time, a tool can take several hundred megabytes
# more, or 2 GiB with huge pages.
_WATCH_SECONDS = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# The maximum size of a file in /proc that is read here.
_PROC_BYTES = 16 * 1024
_OUT_OF_MEMORY = b"\n[The command used more than %d MiB of memory and was killed.]\n"
MAX_OUTPUT_BYTES = 64 * 1024
# The space that is reserved for the notice of how much output was cut.
_NOTICE_BYTES = 64
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# The output of each running command, by the asyncio task that waits for the command.
_outputs: "weakref.WeakKeyDictionary[asyncio.Future[Any], BoundedOutput]" = (
    weakref.WeakKeyDictionary()
)


class ToolStatus(StrEnum):
    """The values of ToolResult.Status in the protos."""

    EXITED = "exited"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call that the model asks for. The arguments are a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """The result of a tool call."""

    status: ToolStatus
    # If a signal ended the process: the negated signal number, or 128 plus the signal number in a
    # sandbox.
    exit_code: int = 0
    output: str = ""
    truncated_bytes: int = 0


class ShellTool:
    """Runs `/bin/sh -c command` in the workspace's folder.

    The environment contains no secret. Standard input is empty; standard output and standard error
    are combined in one text.

    No descendant outlives its tool call. When the shell has exited, the tool waits 0.2 s for more
    output of the processes that are left. Then it kills the process group and all other
    descendants, even if they have changed their session or environment. Processes that another
    program (a container engine, a job scheduler) starts for the command are not descendants and
    continue.
    """

    name = "shell"

    def __init__(
        self,
        files_dir: Path,
        workspace_id: str,
        epoch: int,
        sandbox: ToolSandbox | None = None,
    ) -> None:
        """Without `sandbox`, commands can do everything that this process can do.

        Raises OSError if the folder cannot be opened.
        """
        self._directory = WorkingDirectory(files_dir)
        self._sandbox = sandbox
        self._environment: Mapping[str, str] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._directory.path),
            "LANG": "C.UTF-8",
            WORKSPACE_VARIABLE: workspace_id,
            EPOCH_VARIABLE: str(epoch),
        }

    async def run(self, call: ToolCall) -> ToolResult:
        """Runs the call to its end.

        If the call cannot be started, the status is `not_run`, and the output says why.

        A cancellation of `run` does the same as a cancellation of `execute`. Raises
        DirectoryLostError if no call can be started any more.
        """
        try:
            command = _command(call)
        except ValueError as error:
            return ToolResult(status=ToolStatus.NOT_RUN, output=str(error))
        self._directory.check()
        return await execute(
            ("/bin/sh", "-c", command),
            directory=self._directory.by_descriptor,
            environment=self._environment,
            sandbox=self._sandbox,
        )


async def execute(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    sandbox: ToolSandbox | None = None,
    input_file: int = subprocess.DEVNULL,
) -> ToolResult:
    """Runs a command to its end.

    If the command cannot be started, the status is `not_run`, and the output says why.

    When `execute` is cancelled, it ends everything that the command has started. It then returns
    the output so far, or raises CancelledError if the command was still being started. The file
    descriptor `input_file` becomes the standard input.
    """
    descendants = Descendants()
    read_end, write_end = os.pipe()
    # If asyncio made the pipe, `process.wait` would not return until every process that holds the
    # pipe has ended.
    with os.fdopen(read_end, "rb", buffering=0) as reader:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sandbox.command(command) if sandbox else command),
                cwd=directory,
                env=environment,
                stdin=input_file,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                # A new process group, so that all its processes can be killed together.
                process_group=0,
                pass_fds=sandbox.descriptors if sandbox else (),
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
        max_bytes = sandbox.limits.memory_bytes if sandbox else None
        running = _Running(process, descendants, reader.fileno(), max_bytes)
        if (call := asyncio.current_task()) is not None:
            _outputs[call] = running.output
        return await _finish(running)


async def _finish(running: "_Running") -> ToolResult:
    exited = asyncio.ensure_future(running.process.wait())
    watching = asyncio.ensure_future(running.watch())
    running.start_reading()
    status = ToolStatus.EXITED
    try:
        try:
            await asyncio.wait({exited})
            await running.wait_output(_LATE_OUTPUT_SECONDS)
        except asyncio.CancelledError:
            status = ToolStatus.INTERRUPTED
        running.kill()
        if not exited.done():
            await asyncio.wait({exited}, timeout=_KILLED_SECONDS)
        await running.wait_output(_KILLED_SECONDS)
    finally:
        watching.cancel()
        running.stop_reading()
        # When this coroutine ends, no process of the command may run, even if the coroutine is
        # cancelled.
        if not exited.done():
            running.kill()
            await asyncio.wait({exited}, timeout=_KILLED_SECONDS)
            exited.cancel()
        await running.wait_gone(_KILLED_SECONDS)
    output, truncated_bytes = running.finished_output()
    # The return code is None if the killed process hangs in the kernel.
    exit_code = (
        running.process.returncode if running.process.returncode is not None else -signal.SIGKILL
    )
    return ToolResult(
        status=status, exit_code=exit_code, output=output, truncated_bytes=truncated_bytes
    )


def output_so_far(call: "asyncio.Future[Any]") -> str:
    """The end of what the call's command has written so far, with keys removed.

    Empty if the call does not run a command.
    """
    output = _outputs.get(call)
    return "" if output is None else output.end()


class _Running:
    """A running command and its output."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        descendants: Descendants,
        read_end: int,
        max_bytes: int | None,
    ) -> None:
        """`max_bytes` limits the memory of all processes together. It is None without a sandbox."""
        self.process = process
        self.output = BoundedOutput()
        self._descendants = descendants
        self._max_bytes = max_bytes
        self._read_end = read_end
        self._ended = asyncio.Event()
        # The text that tells the model why the call was killed.
        self._notice = b""

    def finished_output(self) -> tuple[str, int]:
        """The output, including the notice if the call was killed, and how many bytes were cut.

        Call it once.
        """
        self.output.feed(self._notice)
        return self.output.finish()

    def start_reading(self) -> None:
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._read_end)

    def _read(self) -> bool:
        """Reads available output. Returns whether there may be more."""
        try:
            data = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return False
        self.output.feed(data)
        if not data:
            self.stop_reading()
            self._ended.set()
        return bool(data)

    async def wait_output(self, timeout_seconds: float) -> None:
        """Waits until all processes have closed the pipe, or until the timeout."""
        for _ in range(_READS_AT_ONCE):
            if self._ended.is_set() or not self._read():
                break
        if self._ended.is_set():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._ended.wait()

    async def wait_gone(self, timeout_seconds: float) -> None:
        await self._descendants.wait_gone(self.process.pid, timeout_seconds)

    def kill(self) -> None:
        """Kills the process group and the descendants that have left it."""
        # If the shell has ended, its id still names only its group: the kernel does not reuse the
        # id while the group has a member.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._descendants.kill(self.process.pid)

    async def watch(self) -> None:
        """Reaps orphans. Kills the call, and returns, when the call uses too much memory.

        A command that leaves many orphans could otherwise use up the machine's process ids.
        """
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self._descendants.reap(self.process.pid)
            if self._max_bytes is not None and memory_exceeds(self._max_bytes):
                self._notice = _OUT_OF_MEMORY % (self._max_bytes // 2**20)
                self.kill()
                return


def _command(call: ToolCall) -> str:
    """The command of the call. Raises ValueError, whose text is for the model."""
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


def storable(text: str) -> str:
    """Replaces NUL and lone surrogates, which PostgreSQL's jsonb and UTF-8 cannot hold."""
    return (
        text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\0", _REPLACEMENT)
    )


class BoundedOutput:
    """Keeps the head and the tail of any amount of output, at most `max_bytes` of UTF-8."""

    def __init__(self, max_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self._tail_bytes = max_bytes // 2
        self._head_bytes = self._tail_bytes - _NOTICE_BYTES
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = bytearray()
        self._tail = bytearray()
        # The number of bytes that were dropped from the front of the tail.
        self._dropped = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Adds output. With `final`, an incomplete character at the end is replaced."""
        encoded = self._decoder.decode(data, final).replace("\0", _REPLACEMENT).encode()
        room = max(self._head_bytes - len(self._head), 0)
        self._head += encoded[:room]
        self._tail += encoded[room:]
        # While nothing is cut, no notice is needed, and the tail may use the notice's space.
        excess = len(self._tail) - (self._tail_bytes + _NOTICE_BYTES)
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess

    def end(self) -> str:
        """The end of the text so far, with keys removed.

        For a long text, returns at least about half of `max_bytes`.
        """
        kept = self._tail if self._dropped else self._head + self._tail
        return redacted_end(kept.decode("utf-8", "ignore"), is_cut=bool(self._dropped))

    def finish(self) -> tuple[str, int]:
        """The text, and how many bytes of it were cut. Call it once, after the last `feed`."""
        self.feed(b"", final=True)
        if not self._dropped:
            return (self._head + self._tail).decode(), 0
        # The cuts may split a character on each side. The rest of such a character is cut too.
        head = self._head.decode("utf-8", "ignore")
        tail = self._tail[-self._tail_bytes :].decode("utf-8", "ignore")
        head, tail = without_parts(head, tail)
        total = len(self._head) + len(self._tail) + self._dropped
        cut = total - len(head.encode()) - len(tail.encode())
        return f"{head}\n[{cut} bytes of output were cut here]\n{tail}", cut


def memory_exceeds(limit_bytes: int) -> bool:
    """Whether the memory of all other processes that this process can see exceeds the limit.

    Memory of files does not count: the folders in which processes can share such memory have a size
    limit (pod/tool_filter.py).
    """
    own = str(os.getpid())
    names = os.listdir("/proc")  # noqa: PTH208 - many times a second
    pids = [name for name in names if name.isdigit() and name != own]
    # An upper bound: a page that processes share after a fork is counted once for each process.
    bound = sum(map(_with_swap if _machine_swaps() else _resident, pids))
    if bound <= limit_bytes:
        return False
    # The exact sum counts each page once, but takes milliseconds for each gigabyte.
    exact = (_fields(f"/proc/{pid}/smaps_rollup", b"\nPss_Anon:", b"\nSwapPss:") for pid in pids)
    return sum(exact) > limit_bytes


def _machine_swaps() -> bool:
    """Whether the machine has swap. /proc/swaps has a heading and one line for each swap area."""
    return _read("/proc/swaps").count(b"\n") > 1


def _resident(pid: str) -> int:
    """The process's memory without files, in bytes. Takes a fifth of the time of `_with_swap`."""
    # The fields are size, resident and shared, in pages. Empty if the process has ended.
    pages = _read(f"/proc/{pid}/statm").split(maxsplit=3)
    return (int(pages[1]) - int(pages[2])) * _PAGE_BYTES if pages else 0


def _with_swap(pid: str) -> int:
    """The process's memory without files, plus its swapped memory, in bytes."""
    return _fields(f"/proc/{pid}/status", b"\nRssAnon:", b"\nVmSwap:")


def _fields(path: str, *names: bytes) -> int:
    """The sum of these fields, in bytes; 0 if the process has ended."""
    text = _read(path)
    # A kernel thread, or a process that is ending, has none of the fields.
    values = (text.partition(name)[2].split(maxsplit=1) for name in names)
    return sum(int(value[0]) * 1024 for value in values if value)


def _read(path: str) -> bytes:
    """The content of a small file in /proc; empty if the process has ended."""
    try:
        # Does not use a file object, which would take four more system calls.
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _PROC_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


class DirectoryLostError(TaskFailed):
    """The directory was deleted or replaced. The text says which of the two happened."""


class WorkingDirectory:
    """A directory that is opened once.

    If its path is replaced later, tools do not run in the new directory.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the directory cannot be opened, or if the path is a symbolic link."""
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        weakref.finalize(self, os.close, self._descriptor)
        # The kernel's path of the directory, which contains no link.
        self.path = self.by_descriptor.readlink()

    @property
    def by_descriptor(self) -> Path:
        """A path to exactly this directory, valid in this process and in its forked children."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def check(self) -> None:
        """Raises DirectoryLostError if the path no longer leads to the directory."""
        try:
            found = self.path.lstat()
        except OSError:
            raise DirectoryLostError("The workspace's folder was deleted.") from None
        if not os.path.samestat(found, os.fstat(self._descriptor)):
            raise DirectoryLostError(
                "The workspace's folder was replaced by another one, by a file or by a link."
            )
