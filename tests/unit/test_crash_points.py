"""Programs have no crash points unless a test has set their folder.

tests/stack/long/test_crash_points.py shows that an armed crash point kills its program.
"""

import asyncio
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from evershell.agents import program
from evershell.api.server import Server
from evershell.app import fleet, worker
from evershell.app.settings import Settings
from evershell.auth.signing_keys import new_key
from evershell.pod import crash_points
from evershell.pod.crash_points import CrashPoints
from evershell.pod.spec import PodSpec
from evershell.telemetry.metrics import Metrics
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("is_set", [False, True])
async def test_a_worker_wraps_nothing_unless_the_folder_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    wrapped = record_wrapped(monkeypatch, worker)
    monkeypatch.setattr(crash_points, "FOLDER", str(tmp_path) if is_set else "")
    settings = Settings(state_dir=tmp_path, database_url="postgresql:///nowhere")
    settings.signing_key_path.write_text(new_key())
    async with worker.worker(settings, Metrics(), 0) as server:
        assert isinstance(server, Server)
    armed = {"commit_events", "record_cancellation", "record_answer", "cancel_task", "start_task"}
    assert wrapped == (armed if is_set else set())


@pytest.mark.parametrize("is_set", [False, True])
async def test_a_controller_wraps_nothing_unless_the_folder_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    wrapped = record_wrapped(monkeypatch, fleet)
    monkeypatch.setattr(crash_points, "FOLDER", str(tmp_path) if is_set else "")
    settings = Settings(
        state_dir=tmp_path, database_url="postgresql:///nowhere", pod_isolation="none"
    )
    settings.signing_key_path.write_text(new_key())
    async with fleet.controller(settings, Metrics()):
        pass
    assert wrapped == ({"end", "remove", "remove_workspace"} if is_set else set())


@pytest.mark.parametrize("is_set", [False, True])
async def test_an_agent_wraps_nothing_unless_the_folder_is_set(
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
    assert wrapped == ({"acknowledge", "commit"} if is_set else set())


def record_wrapped(monkeypatch: pytest.MonkeyPatch, module: Any) -> set[str]:
    """Returns a set. The module will add to it each name that it wraps in crash points."""
    wrapped: set[str] = set()

    class RecordingCrashPoints(CrashPoints):
        def armed(self, target: Any, **names: Any) -> Any:
            wrapped.update(names)
            return super().armed(target, **names)

        def around(self, name: Any, call: Any) -> Any:
            if isinstance(call, partial):
                wrapped.add(call.func.__name__)
            return super().around(name, call)

    monkeypatch.setattr(module, "CrashPoints", RecordingCrashPoints)
    return wrapped
