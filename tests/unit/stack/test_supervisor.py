"""How the supervisor restarts programs, and which children it has started itself."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from evershell.stack import watchdogs
from evershell.stack.supervisor import Program, Supervisor
from tests.support.waiting import eventually_async


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


async def test_a_program_that_starts_has_more_time_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdogs, "_PROBE_SECONDS", 0.01)
    answers: list[bool] = []

    async def is_live() -> bool:
        answers.append(len(answers) >= watchdogs._MAX_STARTING_PROBES - 1)
        return answers[-1]

    supervisor = Supervisor(tmp_path / "logs")
    await supervisor.start(Program("program", ["/bin/sleep", "600"], is_live=is_live))
    try:
        first = supervisor.pids()["program"]
        await eventually_async(lambda: len(answers) > 2 * watchdogs._MAX_STARTING_PROBES)
        assert supervisor.pids()["program"] == first
    finally:
        await supervisor.stop_all()


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
