"""A program that takes too much memory ends, and starts again."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from server.stack.supervisor import Program, Supervisor
from tests.support.waiting import eventually_async

LIMIT_BYTES = 96 * 2**20
WAIT_SECONDS = 15.0
# Each start is a line of the file `starts`.
BEGIN = "import sys, time; open('{starts}', 'a').write('start\\n'); held = []"
# A bit at a time, and never giving up: memory is refused, and it goes on.
GROWS = """
while True:
    try:
        held.append(bytearray(1 << 20))
        time.sleep(0.002)
    except MemoryError:
        time.sleep(0.1)
"""
LEAPS = "\ntry:\n    held.append(bytearray(1 << 40 >> 8))\nfinally:\n    print(sys.exc_info()[0].__name__, flush=True)\n"
STAYS = "\nheld.append(bytearray(32 << 20))\ntime.sleep(600)\n"


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    running = Supervisor(tmp_path / "logs", LIMIT_BYTES)
    yield running
    await running.stop_all()


async def start(supervisor: Supervisor, folder: Path, what: str) -> Path:
    starts = folder / "starts"
    command = [sys.executable, "-c", BEGIN.format(starts=starts) + what]
    await supervisor.start(Program("program", command))
    return starts


def count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_a_program_that_grows_beyond_its_limit_ends_and_comes_back(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    starts = await start(supervisor, tmp_path, GROWS)
    largest = 0

    def has_come_back() -> bool:
        nonlocal largest
        for pid in supervisor.pids().values():
            if psutil.pid_exists(pid):
                largest = max(largest, psutil.Process(pid).memory_info().rss)
        return count(starts) >= 3

    await eventually_async(has_come_back)
    assert largest < 1.5 * LIMIT_BYTES, "the kernel has refused it more"


async def test_what_is_asked_for_at_once_is_refused(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = await start(supervisor, tmp_path, LEAPS)
    await eventually_async(lambda: count(starts) >= 2)
    assert "MemoryError" in (tmp_path / "logs" / "program.log").read_text()


async def test_a_program_within_its_limit_is_left_alone(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    starts = await start(supervisor, tmp_path, STAYS)
    await eventually_async(lambda: count(starts) == 1)
    # Longer than the supervisor takes to look at it twice.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            while count(starts) == 1:
                await asyncio.sleep(0.05)
