"""Pods on this machine: an agent's process with a folder of its own.

`<pods>/<workspace id>/` holds `pid`, `created`, `epoch`, `log` and, as the agent's working directory, `files/`, which outlives it.
What is on disk is enough for another controller to take over: the processes do not end with the one that started them.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from server.core.runtime import AgentIdentity
from server.core.workspace import Workspace
from server.fleet import pod_files, processes
from server.fleet.processes import Pod
from server.pod_process import EPOCH_MARKER, WORKSPACE_MARKER

_LOG_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """What an agent is given at its start, as one JSON object on its standard input: its environment could be read by its tools."""

    workspace_id: str
    epoch: int
    runtime_addresses: list[str]
    runtime_token: str
    control_plane_public_key: str
    files_dir: str
    model: str
    openai_base_url: str
    openai_api_key: str = field(repr=False)
    model_timeout_seconds: float
    tool_timeout_seconds: float
    # Empty: no crash points.
    crash_points_dir: str = ""


class LocalPods:
    """Starts and ends pods as processes of this machine."""

    def __init__(
        self,
        root: Path,
        spec_for: Callable[[AgentIdentity, str], PodSpec],
        leftovers: Callable[[Collection[int]], list[psutil.Process]] = lambda started: [],
    ) -> None:
        """`leftovers` tells what agents that have died left to this process, which has started the others."""
        self._root = root
        self._spec_for = spec_for
        self._leftovers = leftovers
        # The agents that this controller has started: workspace id and epoch → process id.
        self._started: dict[tuple[str, int], int] = {}

    def was_started(self, workspace: Workspace) -> bool:
        """Whether a pod of this epoch was started, by whichever controller."""
        try:
            return pod_files.read(self._folder(workspace.id) / "epoch") == str(workspace.epoch)
        except (OSError, ValueError):
            return False

    async def start(self, workspace: Workspace) -> None:
        """Starts the pod of the workspace's epoch. Raises OSError."""
        folder = self._folder(workspace.id)
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written first: a controller that dies right after the start leaves no second pod behind.
        pod_files.write(folder / "epoch", str(workspace.epoch))
        spec = self._spec_for(AgentIdentity(workspace.id, workspace.epoch), str(files))
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            WORKSPACE_MARKER: workspace.id,
            EPOCH_MARKER: str(workspace.epoch),
        }
        with pod_files.open_log(folder / "log") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns once the program is loaded
                # -P: the working directory is full of what tools have written, and no module is to be taken from there.
                [sys.executable, "-P", "-m", "server", "agent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=files,
                env=environment,
                start_new_session=True,
            )
        self._started[workspace.id, workspace.epoch] = process.pid
        pod_files.write(folder / "created", _created(process.pid))
        pod_files.write(folder / "pid", str(process.pid))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(spec)).encode())
            process.stdin.close()

    async def ended(self, workspace: Workspace) -> None:
        """Returns when the agent's process of this epoch is gone; at once when there is none."""
        pid = self._pid(workspace)
        if pid is not None:
            await processes.gone(pid)

    def is_alive(self, workspace: Workspace) -> bool:
        """Whether the agent's process of this epoch is there, and its files too."""
        return self._pid(workspace) is not None and self.has_files(workspace.id)

    def has_files(self, workspace_id: str) -> bool:
        """Whether the agent's working directory is there; a tool may have deleted it, and the pod's whole folder with it."""
        return (self._folder(workspace_id) / "files").is_dir()

    def last_words(self, workspace_id: str) -> str:
        """The last line of the pod's log; empty when there is none."""
        try:
            with pod_files.open_plain(self._folder(workspace_id) / "log", os.O_RDONLY) as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    async def end(self, workspace: Workspace, grace_seconds: float) -> bool:
        """Ends everything that runs in the pod, tools too. False: not all of it is known to have ended.

        A pod of a later epoch lives on: a controller that was held up may come to this when another one has long started that.
        """
        folder, pod = self._folder(workspace.id), (workspace.id, workspace.epoch)
        # What an agent has left that an earlier controller started, and that died by itself, has gone to whoever is above us.
        is_known = pod in self._started or self._pid(workspace) is not None or not (folder / "pid").exists()
        stopped = await end_pods(
            folder,
            grace_seconds=grace_seconds,
            last_epoch=workspace.epoch,
            leftovers=lambda: self._leftovers(self._started.values()),
        )
        self._started.pop(pod, None)
        return stopped and is_known

    def _pid(self, workspace: Workspace) -> int | None:
        folder = self._folder(workspace.id)
        try:
            pid = int(pod_files.read(folder / "pid"))
            process = psutil.Process(pid)
            # The number may have been given to another process since. (Its environment could not tell: a process that is just being
            # started shows none for a moment.)
            if process.status() == psutil.STATUS_ZOMBIE or _created(pid) != pod_files.read(folder / "created"):
                return None
        except (OSError, ValueError, psutil.Error):
            return None
        return pid if self.was_started(workspace) else None

    def _folder(self, workspace_id: str) -> Path:
        return self._root / workspace_id


async def end_pods(
    *folders: Path,
    grace_seconds: float,
    last_epoch: int | None = None,
    leftovers: Callable[[], list[psutil.Process]] = list,
) -> bool:
    """Ends everything that runs in the pods of these folders. False: not all of it is known to have ended.

    With `last_epoch`, pods of later epochs are left alone.
    """
    pods = [Pod(folder.name, None if _is_later(folder, last_epoch) else _session(folder), last_epoch) for folder in folders]
    stopped = await processes.end_all(*pods, grace_seconds=grace_seconds, leftovers=leftovers)
    for folder in folders:
        # A tool may have put anything in its place; a file that stays names a process that has ended.
        with contextlib.suppress(OSError):
            if not _is_later(folder, last_epoch):
                (folder / "pid").unlink()
    return stopped


def _is_later(folder: Path, epoch: int | None) -> bool:
    """Whether the pod that was started last is of a later epoch."""
    try:
        return epoch is not None and int(pod_files.read(folder / "epoch")) > epoch
    except (OSError, ValueError):
        return False


def _session(folder: Path) -> int | None:
    """The session of the pod's agent, which outlives it while a tool is in it; None when it is known to be over.

    The kernel gives a session's number to no other process while the session has a member.
    """
    try:
        pid = int(pod_files.read(folder / "pid"))
        created = pod_files.read(folder / "created")
    except (OSError, ValueError):
        return None
    try:
        return pid if _created(pid) == created else None
    except OSError:
        return pid


def _created(pid: int) -> str:
    """When the process was made, in clock ticks since the machine's start (proc_pid_stat(5)). With its number, it names it."""
    behind_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return behind_the_name[19]
