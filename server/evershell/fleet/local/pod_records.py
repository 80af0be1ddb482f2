"""The files of each workspace's pods.

`fleet/<workspace id>/` belongs to the controller:
- `agent` holds the epoch that was started last, the run of the stack that started it and, until the
  agent has ended, the agent's process.
- `log` is the log of the workspace's agents.

`pods/<workspace id>/` belongs to tools. No program of the stack trusts its content:
- `files/` is the agent's working directory, which outlives the agent.
- `pid` holds the agent's process id, for operators.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evershell.fleet.local import pod_files
from evershell.fleet.local.processes import ProcessId

_FLEET, _PODS, _FILES = "fleet", "pods", "files"
_AGENT, _LOG, _PID = "agent", "log", "pid"
_AGENT_TEXT = re.compile(
    r"([0-9]{1,18}) ([A-Za-z0-9_-]{1,64})(?: ([0-9]{1,9}) ([0-9]{1,18})( init)?)?"
)
# A line of an agent's log has a field of at most 1,000 characters, and at most 12 bytes for each.
_LOG_TAIL_BYTES = 16_000


class UnreadableError(Exception):
    """The record exists but cannot be read, or its content is not what a controller writes."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """The pod that was started last in a workspace.

    Only a hint, because tools that run without a sandbox can forge it.
    """

    epoch: int
    # The run of the stack. An epoch alone does not identify a pod, because a restored database, or
    # a different one, may count the same epochs again.
    run: str
    # None if the agent has not started yet or is known to have ended.
    process: ProcessId | None = None
    # Whether the process is the init process of a PID namespace, so that everything in the pod ends
    # with it.
    is_init: bool = False


class PodRecords:
    """The records, logs and folders of all workspaces."""

    def __init__(self, state_dir: Path) -> None:
        self._base = state_dir

    def workspace_ids(self) -> list[str]:
        """The ids of the workspaces that have had a pod."""
        try:
            with pod_files.opened(self._base, _FLEET) as folder:
                return pod_files.names(folder)
        except OSError:
            return []

    def read(self, workspace_id: str) -> AgentRecord | None:
        """The record; None if no pod was started. Raises UnreadableError."""
        try:
            with pod_files.opened(self._base, _FLEET, workspace_id) as folder:
                text = pod_files.read(folder, _AGENT)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UnreadableError from error
        match = _AGENT_TEXT.fullmatch(text)
        if match is None:
            raise UnreadableError
        epoch, run, pid, started_at, init = match.groups()
        process = ProcessId(int(pid), int(started_at)) if pid else None
        return AgentRecord(int(epoch), run, process, is_init=init is not None)

    def write(self, workspace_id: str, record: AgentRecord) -> None:
        """Replaces the record and, if it has a process, the `pid` file. Raises OSError."""
        process = record.process
        with pod_files.created(self._base, _FLEET, workspace_id) as folder:
            started = f" {process.pid} {process.started_at}" if process is not None else ""
            started += " init" if record.is_init else ""
            pod_files.write(folder, _AGENT, f"{record.epoch} {record.run}{started}")
        if process is not None:
            with pod_files.created(self._base, _PODS, workspace_id) as folder:
                pod_files.write(folder, _PID, str(process.pid))

    def note_end(self, workspace_id: str, last_epoch: int | None = None) -> None:
        """Records that the pod has ended, unless the recorded epoch is after `last_epoch`.

        Ignores OSError.
        """
        try:
            record = self.read(workspace_id)
        except UnreadableError:
            record = None
        if record is not None and last_epoch is not None and record.epoch > last_epoch:
            return
        with suppress(OSError), pod_files.opened(self._base, _FLEET, workspace_id) as folder:
            # Removes the old record first: on a full disk, this succeeds even if the write fails.
            pod_files.remove(folder, _AGENT)
            if record is not None:
                pod_files.write(folder, _AGENT, f"{record.epoch} {record.run}")
        with suppress(OSError), pod_files.opened(self._base, _PODS, workspace_id) as folder:
            pod_files.remove(folder, _PID)

    def remove_some(self, workspace_id: str) -> bool:
        """Removes the files of the workspace, or a part of them. Returns whether nothing is left.

        Raises OSError.
        """
        # The record is removed last, because controllers find the pod by it.
        for name in (_PODS, _FLEET):
            with pod_files.created(self._base, name) as folder:
                if not pod_files.remove_some(folder, workspace_id):
                    return False
        return True

    @contextmanager
    def created_files(self, workspace_id: str) -> Iterator[int]:
        """Like `files`, but creates missing folders. Raises OSError."""
        with pod_files.created(self._base, _PODS, workspace_id, _FILES) as files:
            yield files

    @contextmanager
    def files(self, workspace_id: str) -> Iterator[int]:
        """The descriptor of the agent's working directory. Raises OSError if it is not a folder."""
        with pod_files.opened(self._base, _PODS, workspace_id, _FILES) as files:
            yield files

    def open_log(self, workspace_id: str) -> BinaryIO:
        """Opens the agents' log for appending. Raises OSError."""
        with pod_files.created(self._base, _FLEET, workspace_id) as folder:
            return pod_files.open_log(folder, _LOG)

    def log_path(self, workspace_id: str) -> Path:
        """The agents' log, for operators."""
        return self._base / _FLEET / workspace_id / _LOG

    def last_log_line(self, workspace_id: str) -> str:
        """The last line of the agents' log; empty if there is none."""
        try:
            with (
                pod_files.opened(self._base, _FLEET, workspace_id) as folder,
                pod_files.open_plain(folder, _LOG, os.O_RDONLY) as log,
            ):
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""
