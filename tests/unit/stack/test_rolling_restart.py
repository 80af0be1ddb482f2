"""SIGHUP stops a stack whose terminal was closed. Otherwise it restarts the programs, in order."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from evershell.stack.envoy.config import Edge
from evershell.stack.envoy.edge_process import EdgeProcess
from evershell.stack.rolling_restart import RollingRestart
from evershell.stack.supervisor import Supervisor

LIMIT_SECONDS = 20
PROGRAM = """
import asyncio, sys
from pathlib import Path
from evershell.core.errors import OperatorError
from evershell.app.signals import stop_signal
from evershell.stack.envoy.edge_process import EdgeProcess
from evershell.stack.envoy.config import Edge
from evershell.stack.rolling_restart import RollingRestart
from evershell.stack.supervisor import Supervisor

async def main():
    folder = Path(sys.argv[1])
    edge = Edge(1, 2, [], folder / "admin.sock")
    rolling = RollingRestart(Supervisor(folder), EdgeProcess(edge, folder / "envoy.yaml"), None)
    async def run():
        (folder / "action").write_text("restart")
        stopping.cancel()
    rolling.run = run
    stopping = asyncio.create_task(stop_signal())
    restarting = asyncio.create_task(rolling.run_on_request(asyncio.create_task(asyncio.sleep(0))))
    await asyncio.sleep(0)
    print("ready", flush=True)
    await asyncio.wait((stopping,))
    if not stopping.cancelled():
        (folder / "action").write_text("stop")

asyncio.run(main())
"""


def take_terminal(terminal: int, *, ignores: bool) -> None:
    """Makes this terminal the controlling terminal of the new process."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    # The tests may run under nohup, and children inherit that SIGHUP is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores else signal.SIG_DFL)


@pytest.mark.parametrize(
    ("closes_terminal", "ignores", "action"),
    [(True, False, "stop"), (True, True, "restart"), (False, False, "restart")],
)
def test_a_closed_terminal_stops_a_stack_and_a_signal_restarts_it(
    tmp_path: Path, closes_terminal: bool, ignores: bool, action: str
) -> None:
    master, terminal = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stdin=terminal,
        preexec_fn=lambda: take_terminal(terminal, ignores=ignores),
    )
    os.close(terminal)
    output = program.stdout
    assert output is not None
    try:
        assert output.readline() == b"ready\n"
        if closes_terminal:
            os.close(master)
        else:
            program.send_signal(signal.SIGHUP)
        program.wait(LIMIT_SECONDS)
        assert (tmp_path / "action").read_text() == action
    finally:
        program.kill()
        program.wait()
        output.close()
        if not closes_terminal:
            os.close(master)


class WorkersRestartedError(Exception):
    """Raised to end a restart once the workers have been restarted."""


class Programs(Supervisor):
    """Programs that become healthy when they are restarted."""

    def __init__(self, folder: Path, edge: "HealthCheckedEdge") -> None:
        super().__init__(folder)
        self.restarted: list[str] = []
        self._edge = edge

    def names(self, prefix: str) -> list[str]:
        return [f"{prefix}0"]

    async def restart(self, name: str) -> None:
        if name.startswith("fleet-"):
            raise WorkersRestartedError
        self.restarted.append(name)
        self._edge.healthy.add(name.replace("worker-", "worker:"))


class HealthCheckedEdge(EdgeProcess):
    def __init__(self, folder: Path, workers: list[str]) -> None:
        super().__init__(Edge(1, 2, workers, folder / "admin.sock"), folder / "envoy.yaml")
        self.healthy = set(workers)

    def configure(self, render: Callable[[Path], None] | None = None) -> None:
        pass

    async def healthy_workers(self) -> set[str]:
        return self.healthy


@pytest.mark.parametrize(
    ("broken", "order"), [("worker:0", [0, 1, 2]), ("worker:1", [1, 0, 2]), ("none", [0, 1, 2])]
)
async def test_the_worker_that_does_not_serve_is_restarted_first(
    tmp_path: Path, broken: str, order: list[int]
) -> None:
    """In this order, another restart can bring back the previous version after a failed restart."""
    edge = HealthCheckedEdge(tmp_path, [f"worker:{index}" for index in range(3)])
    edge.healthy.discard(broken)
    programs = Programs(tmp_path, edge)
    with pytest.raises(WorkersRestartedError):
        await RollingRestart(programs, edge, lambda path: None).run()
    assert programs.restarted == [f"worker-{index}" for index in order]
