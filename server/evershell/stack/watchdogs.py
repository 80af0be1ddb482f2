"""Watches the programs of a stack: their memory, their state, and whether they answer."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import psutil
import structlog

from evershell.stack.frozen import Sample

log = structlog.get_logger()

# How often the memory of each program is compared with its limit.
_MEMORY_CHECK_SECONDS = 1.0
# The pause before a program is asked again whether it is live.
_ASK_SECONDS = 3.0

# Asks a program whether it is live.
IsLive: TypeAlias = Callable[[], Awaitable[bool]]


async def kill_if_over_memory(
    name: str, process: "subprocess.Popen[bytes]", memory_bytes: int | None
) -> None:
    """Kills the process if it uses more memory than the limit.

    Without `memory_bytes` there is no limit.
    """
    while memory_bytes is not None:
        await asyncio.sleep(_MEMORY_CHECK_SECONDS)
        used = _used_memory_bytes(process)
        if used > memory_bytes:
            log.error("program_over_memory_limit", name=name, memory_mb=used >> 20)
            process.kill()


async def count_answers(is_live: IsLive | None, answered: Callable[[], None]) -> None:
    """Asks the program regularly whether it is live. Calls `answered` each time that it is.

    Does nothing without `is_live`.
    """
    while is_live is not None:
        if await is_live():
            answered()
        await asyncio.sleep(_ASK_SECONDS)


def look_at(pid: int, kind: str, turns: int | None) -> Sample | None:
    """Takes a sample of the process. Returns None if the process has just ended."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return Sample(
            kind,
            pid,
            is_stopped=process.status() == psutil.STATUS_STOPPED,
            processor_seconds=times.user + times.system,
            turns=turns,
            is_blocked=lambda: _is_blocked(pid),
        )
    except psutil.Error:
        return None


def _is_blocked(pid: int) -> bool:
    """False if a thread runs, waits for a processor or a disk, or is held by a debugger.

    proc_pid_stat(5) describes the states.
    """
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            # The name in parentheses before the state may itself contain parentheses.
            if path.read_text().rpartition(")")[2].split()[0] in ("R", "D", "t"):
                return False
    return True


def _used_memory_bytes(process: "subprocess.Popen[bytes]") -> int:
    try:
        return int(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        # The process has just ended.
        return 0
