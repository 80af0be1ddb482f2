"""How the supervisor restarts programs, and tells its own children from adopted ones."""

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from evershell.stack import frozen, watchdogs
from evershell.stack import supervisor as supervisor_module
from evershell.stack.supervisor import Program, Supervisor
from tests.support.waiting import eventually_async

WAIT_SECONDS = 60.0


async def test_a_restart_that_fails_is_retried(tmp_path: Path) -> None:
    commands = iter([["/bin/true"], ["/absent"], ["/absent"], ["/bin/sleep", "600"]])
    supervisor = Supervisor(tmp_path / "logs")
    program = Program("program", lambda: next(commands))
    await supervisor.start(program)
    try:
        await eventually_async(
            lambda: program.process is not None and program.process.args == ["/bin/sleep", "600"]
        )
    finally:
        await supervisor.stop_all()


# A program that counts the turns of its event loop. It blocks the loop while `blocked` exists.
TURNS = """
import asyncio, pathlib, time
from evershell.telemetry import turns
async def main():
    async with turns.counted():
        while True:
            await asyncio.sleep(0.01)
            while pathlib.Path("{folder}/blocked").exists():
                {blocked}
asyncio.run(main())
"""


@pytest.mark.parametrize("blocked", ["pass", "time.sleep(600)"])
async def test_a_silent_program_is_replaced_while_another_one_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    """The silent program is stuck in a loop or in a wait."""
    monkeypatch.setattr(frozen, "_SILENT_SECONDS", 2.0)
    monkeypatch.setattr(frozen, "_SILENT_TURNS", 4)
    supervisor = Supervisor(tmp_path / "logs")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        code = TURNS.format(folder=tmp_path / name, blocked=blocked)
        command = [sys.executable, "-c", code]
        await supervisor.start(Program(f"worker-{name}", command, counts_turns=True))
    try:
        for name in ("first", "second"):
            await eventually_async(partial(supervisor.has_turned, f"worker-{name}"), WAIT_SECONDS)
        before = supervisor.pids()
        (tmp_path / "first" / "blocked").touch()
        await eventually_async(
            lambda: supervisor.pids()["worker-first"] != before["worker-first"], WAIT_SECONDS
        )
        assert supervisor.pids()["worker-second"] == before["worker-second"]
    finally:
        await supervisor.stop_all()


async def test_programs_that_are_stopped_are_replaced(tmp_path: Path) -> None:
    """All stopped programs are replaced at once, even the only program of a kind."""
    supervisor = Supervisor(tmp_path / "logs")
    for name in ("worker-0", "worker-1", "fleet"):
        await supervisor.start(Program(name, ["/bin/sleep", "600"]))
    try:
        before = supervisor.pids()
        for pid in before.values():
            os.kill(pid, signal.SIGSTOP)
        await eventually_async(
            lambda: not {*before.values()} & {*supervisor.pids().values()}, WAIT_SECONDS
        )
    finally:
        await supervisor.stop_all()


async def test_a_failed_look_at_the_programs_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([psutil.AccessDenied()])

    def fail_once(*arguments: Any) -> Any:
        if (failure := next(failures, None)) is not None:
            raise failure
        return watchdogs.look_at(*arguments)

    monkeypatch.setattr(supervisor_module, "look_at", fail_once)
    supervisor = Supervisor(tmp_path / "logs")
    with capture_logs() as logged:
        await supervisor.start(Program("fleet", ["/bin/sleep", "600"]))
        try:
            pid = supervisor.pids()["fleet"]
            os.kill(pid, signal.SIGSTOP)
            await eventually_async(lambda: supervisor.pids()["fleet"] != pid, WAIT_SECONDS)
        finally:
            await supervisor.stop_all()
    assert "programs_not_watched" in [each["event"] for each in logged]


async def test_a_process_that_a_program_leaves_is_not_its_own(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    left = tmp_path / "left"
    child = f"sleep 600 & echo $! > {left}.new; mv {left}.new {left}"
    helper = await asyncio.create_subprocess_exec("/bin/sleep", "600", stdout=subprocess.DEVNULL)
    try:
        await supervisor.start(Program("program", ["/bin/sh", "-c", f"({child}); exec sleep 600"]))
        await eventually_async(left.exists)
        leftover = int(left.read_text())

        await eventually_async(lambda: psutil.Process(leftover).ppid() == os.getpid())
        own = supervisor.own_pids()
        assert {helper.pid, supervisor.pids()["program"]} <= own and leftover not in own
        os.kill(leftover, signal.SIGKILL)
        await supervisor.stop_all()
    finally:
        helper.kill()
        await helper.wait()
    supervisor.reap()
