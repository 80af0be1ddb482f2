"""Which children the supervisor has started itself."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from server.fleet import processes
from server.stack.supervisor import Program, Supervisor


async def test_a_program_that_cannot_be_started_again_is_retried(tmp_path: Path) -> None:
    commands = iter([["/bin/true"], ["/absent"], ["/absent"], ["/bin/sleep", "600"]])
    supervisor = Supervisor(tmp_path / "logs")
    program = Program("program", lambda: next(commands))
    await supervisor.start(program)
    try:
        async with asyncio.timeout(10):
            while program.process is None or program.process.args != ["/bin/sleep", "600"]:
                await asyncio.sleep(0.005)
    finally:
        await supervisor.stop_all()


async def test_what_a_program_leaves_is_not_its_supervisors_own(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    line = f"(sleep 600 & echo $! > {tmp_path}/left.new; mv {tmp_path}/left.new {tmp_path}/left); exec sleep 600"
    helper = await asyncio.create_subprocess_exec("/bin/sleep", "600", stdout=subprocess.DEVNULL)
    try:
        await supervisor.start(Program("program", ["/bin/sh", "-c", line]))
        async with asyncio.timeout(10):
            while not (tmp_path / "left").exists():
                await asyncio.sleep(0.005)
        left = int((tmp_path / "left").read_text())
        # Other tests of this process may have left processes, too.
        async with asyncio.timeout(10):
            while left not in (
                found := {process.pid for process in processes.leftovers(supervisor.own_pids())}
            ):
                await asyncio.sleep(0.005)
        own = {helper.pid, supervisor.pids()["program"]}
        assert own <= supervisor.own_pids() and not own & found
        os.kill(left, signal.SIGKILL)
        await supervisor.stop_all()
    finally:
        helper.kill()
        await helper.wait()
    supervisor.reap()
