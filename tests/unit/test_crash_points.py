"""Crash points kill a program at an armed point, and do nothing where none is armed."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from evershell.agents import program
from evershell.api.server import Server
from evershell.app import wiring as bootstrap
from evershell.app.settings import Settings
from evershell.auth.signing_keys import new_key
from evershell.core.task import IterationCompleted, TaskEnded, TaskStarted, TaskStatus
from evershell.pod.crash_points import CrashPoints, kind_of
from evershell.pod.spec import PodSpec
from evershell.telemetry.metrics import Metrics
from tests.support.waiting import eventually_async

ITERATION, END = IterationCompleted(number=1, payload={}), TaskEnded(status=TaskStatus.COMPLETED)


async def double(number: int) -> int:
    return 2 * number


CALLING = """
import asyncio, pathlib, sys
from evershell.pod.crash_points import CrashPoints

async def call():
    print("called")

asyncio.run(CrashPoints(pathlib.Path(sys.argv[1])).around("call", call)())
"""


@pytest.mark.parametrize(("point", "output"), [("before_call", ""), ("after_call", "called\n")])
def test_an_armed_point_kills_once(tmp_path: Path, point: str, output: str) -> None:
    (tmp_path / point).touch()
    command = [sys.executable, "-u", "-c", CALLING, str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, output)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout) == (0, "called\n")


CANCELLED = """
import asyncio, pathlib, sys
from evershell.pod.crash_points import CrashPoints

async def main():
    started = asyncio.Event()

    async def call():
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(CrashPoints(pathlib.Path(sys.argv[1])).around("call", call)())
    await started.wait()
    task.cancel()
    await asyncio.wait({task})

asyncio.run(main())
"""


def test_a_cancelled_call_reaches_the_point_after_it(tmp_path: Path) -> None:
    (tmp_path / "after_call").touch()
    command = [sys.executable, "-c", CANCELLED, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


async def test_a_call_without_an_armed_point_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "before_another").touch()
    assert await CrashPoints(tmp_path).around("call", double)(21) == 42


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([TaskStarted()], "start"),
        ([ITERATION], "iteration"),
        ([ITERATION, END], "terminal"),
        ([END], "terminal"),
    ],
)
def test_the_kind_of_a_commit_is_that_of_its_last_event(events: list[Any], kind: str) -> None:
    assert kind_of(events) == kind


@pytest.mark.parametrize("is_set", [False, True])
async def test_a_worker_wraps_nothing_unless_the_setting_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    wrapped = record_wrapped(monkeypatch, bootstrap)
    settings = Settings(
        state_dir=tmp_path,
        database_url="postgresql:///nowhere",
        crash_points_dir=tmp_path if is_set else None,
    )
    settings.signing_key_path.write_text(new_key())
    async with bootstrap.control_plane(settings, Metrics()) as server:
        assert isinstance(server, Server)
    armed = {"commit_events", "record_cancellation", "record_answer", "cancel_task", "start_task"}
    assert wrapped == (armed if is_set else set())


@pytest.mark.parametrize("is_set", [False, True])
async def test_an_agent_wraps_nothing_unless_the_setting_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    wrapped = record_wrapped(monkeypatch, program)
    settings = PodSpec(
        workspace_id="ws_1",
        epoch=1,
        runtime_addresses=["127.0.0.1:1"],
        runtime_secret="00" * 32,
        signal_secret="00" * 32,
        files_dir=str(tmp_path),
        crash_points_dir=str(tmp_path) if is_set else "",
    )
    agent = asyncio.create_task(program.run(settings, structlog.get_logger()))
    await eventually_async(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        await agent
    assert wrapped == ({"CancelTask", "commit"} if is_set else set())


def record_wrapped(monkeypatch: pytest.MonkeyPatch, module: Any) -> set[str]:
    """The names of the methods that the module wraps in crash points from now on."""
    wrapped: set[str] = set()

    class RecordingCrashPoints(CrashPoints):
        def armed(self, target: Any, **names: Any) -> Any:
            wrapped.update(names)
            return super().armed(target, **names)

    monkeypatch.setattr(module, "CrashPoints", RecordingCrashPoints)
    return wrapped
