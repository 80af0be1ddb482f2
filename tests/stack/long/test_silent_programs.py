"""A worker whose event loop is stuck is replaced if another worker serves."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lengths import smoke
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# Every Python program of the stack loads this code, which blocks a worker's event loop on SIGUSR2.
MODULE = """
import os, pathlib, signal, sys, time
def block(number, frame):
    while not pathlib.Path({released!r}).exists():
        {how}
if "serve" in sys.orig_argv:
    signal.signal(signal.SIGUSR2, block)
"""
WAYS = {"in a loop": "pass", "in a wait": "time.sleep(0.5)"}
# The time limit for noticing that a worker is silent. A worker is silent if its event loop makes no
# turn while the worker uses 15 s of processor time, or while the event loop of another worker makes
# as many turns as an idle event loop makes in 15 s.
SILENT_SECONDS = 180.0


class Blocking:
    """A stack whose workers can be blocked one by one, and released together."""

    def __init__(self, folder: Path, way: str, workers: int) -> None:
        self.released = folder / "released"
        modules = folder / "modules"
        modules.mkdir()
        text = MODULE.format(released=str(self.released), how=WAYS[way])
        (modules / "sitecustomize.py").write_text(text)
        self.stack = Stack(folder / "state", WORKERS=str(workers), PYTHONPATH=str(modules))

    def block(self, pid: int) -> None:
        os.kill(pid, signal.SIGUSR2)

    def has_logged(self, event: str) -> bool:
        return f'"{event}"' in self.stack.output.read_text()


@pytest.fixture
def blocking(tmp_path: Path) -> Callable[[str, int], Blocking]:
    return lambda way, workers: Blocking(tmp_path, way, workers)


@pytest.mark.parametrize("way", smoke(WAYS, ["in a loop"]))
def test_a_silent_worker_is_replaced(blocking: Callable[[str, int], Blocking], way: str) -> None:
    running = blocking(way, 2)
    with running.stack.started():
        silent, other = running.stack.pids("serve")
        workspace = Workspace(running.stack)
        task_id = workspace.begin("sleep 600")
        running.block(silent)
        eventually(lambda: silent not in running.stack.pids("serve"), SILENT_SECONDS)
        assert running.has_logged("program_frozen")
        eventually(lambda: len(running.stack.pids("serve")) == 2)
        assert other in running.stack.pids("serve")
        workspace.cancel(force_after="0s")
        assert workspace.await_end(task_id)["status"] == "cancelled"


@pytest.mark.parametrize("way", smoke(WAYS, ["in a wait"]))
def test_the_only_worker_stays(blocking: Callable[[str, int], Blocking], way: str) -> None:
    """The silence of the only worker is logged, and the worker continues once it can."""
    running = blocking(way, 1)
    with running.stack.started():
        (worker,) = running.stack.pids("serve")
        running.block(worker)
        eventually(lambda: running.has_logged("program_silent"), SILENT_SECONDS)
        running.released.touch()
        workspace = Workspace(running.stack)
        task_id = workspace.submit("echo done")
        assert workspace.await_end(task_id)["status"] == "completed"
        assert running.stack.pids("serve") == [worker]
        assert not running.has_logged("program_frozen")
