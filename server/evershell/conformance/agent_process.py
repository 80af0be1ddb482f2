"""The process of the agent under test, and all processes that it has started."""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from evershell.pod.spec import PodSpec

_POLL_SECONDS = 0.02
_MAX_LOG_BYTES = 20_000


class AgentProcess:
    """A process that was started like an agent in a pod, but without a sandbox.

    The calling process must be a subreaper (pod/process.py) and have no other children.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        # The number of cancelled tasks that the agent itself has ended.
        self.cancelled_tasks = 0

    @classmethod
    async def start(cls, command: Sequence[str], spec: PodSpec, folder: Path) -> "AgentProcess":
        """Starts the command in the folder of the workspace's files. Raises OSError."""
        log = folder.parent / "agent.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        assert process.stdin is not None
        with suppress(ConnectionError):
            process.stdin.write(json.dumps(asdict(spec)).encode())
            await process.stdin.drain()
        process.stdin.close()
        return cls(process, log)

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process; None while it runs."""
        return self._process.returncode

    def last_lines(self) -> str:
        """The end of the agent's log."""
        return self._log.read_bytes()[-_MAX_LOG_BYTES:].decode(errors="replace").strip()

    async def wait(self, seconds: float) -> bool:
        """Waits until the process ends, up to `seconds`. Returns whether it has ended."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        return self._process.returncode is not None

    def started(self) -> dict[int, psutil.Process]:
        """The living processes that the agent has started, including orphans."""
        living = {}
        for each in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if each.pid != self._process.pid and each.status() != psutil.STATUS_ZOMBIE:
                    living[each.pid] = each
        return living

    async def left(self, before: dict[int, psutil.Process], seconds: float) -> str:
        """The processes that are not in `before` and do not end within `seconds`, as text."""
        waited = 0.0
        while new := [each for pid, each in self.started().items() if before.get(pid) != each]:
            if waited >= seconds:
                return ", ".join(map(_described, new))
            await asyncio.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS
        return ""

    async def end(self, seconds: float) -> bool:
        """Ends the process as a controller does. Returns whether it ended before it was killed."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        has_ended = await self.wait(seconds)
        await self.kill()
        return has_ended

    async def kill(self) -> None:
        """Kills the process and everything that it has started."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        while running := self.started():
            for each in running.values():
                with suppress(psutil.Error):
                    each.kill()
            await asyncio.sleep(_POLL_SECONDS)


def _described(process: psutil.Process) -> str:
    try:
        return f"`{' '.join(process.cmdline())[:80]}` ({process.pid})"
    except psutil.Error:
        return f"process {process.pid}"
