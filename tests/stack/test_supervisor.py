"""Which children the supervisor has started itself."""

import asyncio
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
        async with asyncio.timeout(10):
            while [process.pid for process in processes.leftovers(supervisor.own_pids())] != [left]:
                await asyncio.sleep(0.005)
        assert {helper.pid, supervisor.pids()["program"]} <= supervisor.own_pids()
        for process in processes.leftovers(supervisor.own_pids()):
            process.kill()
        await supervisor.stop_all()
    finally:
        helper.kill()
        await helper.wait()
    supervisor.reap()
