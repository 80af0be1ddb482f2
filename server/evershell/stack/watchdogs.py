"""Kills a program that uses too much memory or does not answer. The supervisor restarts it."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import psutil
import structlog

log = structlog.get_logger()

# How often the memory of each program is compared with its limit.
_MEMORY_CHECK_SECONDS = 1.0
# A program is asked this often whether it is live, and may take as long to answer.
_PROBE_SECONDS = 3.0
# A program that has not answered this many times in a row is killed. Probes are counted instead of
# seconds, because the supervisor is frozen together with the program while a laptop sleeps.
_MAX_SILENT_PROBES = 5
# The same until the first answer after a start.
_MAX_STARTING_PROBES = 20

# Asks a program whether it is live.
IsLive: TypeAlias = Callable[[], Awaitable[bool]]


async def kill_if_over_memory(
    name: str, process: "subprocess.Popen[bytes]", memory_bytes: int | None
) -> None:
    """Kills the process whenever it uses more. Without `memory_bytes` there is no limit."""
    while memory_bytes is not None:
        await asyncio.sleep(_MEMORY_CHECK_SECONDS)
        used = _used_memory_bytes(process)
        if used > memory_bytes:
            log.error("program_over_memory_limit", name=name, memory_mb=used >> 20)
            process.kill()


async def kill_if_frozen(
    name: str, process: "subprocess.Popen[bytes]", is_live: IsLive | None
) -> None:
    """Kills the process once it has not answered for too long. Without `is_live`, never."""
    if is_live is None:
        return
    silent, limit = 0, _MAX_STARTING_PROBES
    while silent < limit:
        asked_at = time.monotonic()
        if await _answers(is_live):
            silent, limit = 0, _MAX_SILENT_PROBES
        else:
            silent += 1
        await asyncio.sleep(asked_at + _PROBE_SECONDS - time.monotonic())
    log.error("program_frozen", name=name)
    process.kill()


async def _answers(is_live: IsLive) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            return await is_live()
    except TimeoutError:
        return False


def _used_memory_bytes(process: "subprocess.Popen[bytes]") -> int:
    try:
        return int(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        # The process has just ended.
        return 0
