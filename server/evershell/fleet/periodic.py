"""Repeats a job, and paces its statements."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

import structlog

from evershell.core.errors import UnavailableError

log = structlog.get_logger()

# The statements of a paced job run for this share of the time.
_SHARE = 0.1
_Answer = TypeVar("_Answer")


async def repeat(name: str, job: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Calls `job` until it is cancelled, and pauses after each call. No error ends it."""
    while True:
        try:
            await job()
        except UnavailableError:
            log.warning("database_unavailable", job=name)
        except Exception:
            log.exception("unexpected_error", job=name)
        await asyncio.sleep(pause_seconds)


async def paced(statement: Awaitable[_Answer]) -> _Answer:
    """Awaits the statement, then pauses so long that statements take only _SHARE of the time."""
    began = monotonic()
    answer = await statement
    await asyncio.sleep((monotonic() - began) * (1 / _SHARE - 1))
    return answer
