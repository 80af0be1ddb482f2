"""A program that exceeds its memory limit ends and is restarted."""

import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from evershell.stack.supervisor import Program, Supervisor
from tests.support.waiting import eventually_async

LIMIT_BYTES = 96 * 2**20
WAIT_SECONDS = 60.0
# Each start of this program appends a line to the file `starts`.
BEGIN = "import sys, time; open('{starts}', 'a').write('start\\n'); held = []"
# The program allocates memory in small steps, and continues when an allocation fails.
GROWS = """
while True:
    try:
        held.append(bytearray(1 << 20))
        time.sleep(0.002)
    except MemoryError:
        time.sleep(0.1)
"""


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    running = Supervisor(tmp_path / "logs", LIMIT_BYTES)
    yield running
    await running.stop_all()


async def start(supervisor: Supervisor, folder: Path, program: str) -> Path:
    starts = folder / "starts"
    command = [sys.executable, "-c", BEGIN.format(starts=starts) + program]
    await supervisor.start(Program("program", command))
    return starts


def count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_a_program_that_grows_beyond_its_limit_is_restarted(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    starts = await start(supervisor, tmp_path, GROWS)
    largest = 0

    def has_restarted() -> bool:
        nonlocal largest
        for pid in supervisor.pids().values():
            with suppress(psutil.NoSuchProcess):
                largest = max(largest, psutil.Process(pid).memory_info().rss)
        return count(starts) >= 3

    await eventually_async(has_restarted, WAIT_SECONDS)
    assert largest < 1.5 * LIMIT_BYTES, "the kernel enforces the limit"
